<?php

// Say something in the chat, from PHP: php app_example/php/say.php huila "the oven is free"

declare(strict_types=1);

require __DIR__ . '/laraman.php';

$desk = getenv('DESK') ?: sys_get_temp_dir() . '/laraman-desk-' . posix_geteuid() . '.sock';
try {
    $reply = laraman_call($desk, ['op' => 'say', 'room' => $argv[1] ?? 'lobby', 'text' => $argv[2] ?? 'hello from PHP'], 2.0);
} catch (LaramanException $exception) {
    fwrite(STDERR, $exception->getMessage() . "\n");
    exit(1);
}
if ($reply['res'] !== 'ok') {
    fwrite(STDERR, $reply['msg'] . "\n");
    exit(1);
}
echo "said to {$reply['people']}\n";
