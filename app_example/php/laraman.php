<?php

declare(strict_types=1);

/**
 * Ask a process that listens on a unix socket: JSON there, JSON back. For PHP 8.0 and newer, without extensions; copy it as it is (MIT).
 *
 *     $reply = laraman_call('/run/app.sock', ['op' => 'broadcast', 'text' => 'closing time']);
 *
 * $timeout is in seconds, for all of it. Throws LaramanException when there is no reply; its code says why.
 */
final class LaramanException extends RuntimeException
{
    /** Nobody listens there, or one may not connect: nothing was sent. */
    public const UNREACHABLE = 1;
    /** The time is over; whether the request was handled is not known. */
    public const LATE = 2;
    /** The connection ended before the reply was complete; whether the request was handled is not known. */
    public const BROKEN = 3;
    /** The request, which was not sent then, or the reply is longer than is allowed. */
    public const TOO_LARGE = 4;
}

/** Send anything that JSON can hold. Objects in the reply become arrays. Throws JsonException, too, for what is no JSON. */
function laraman_call(string $path, mixed $request, float $timeout = 5.0): mixed
{
    $body = json_encode($request, JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_UNESCAPED_SLASHES);
    return json_decode(laraman_exchange($path, $body, $timeout), true, 512, JSON_THROW_ON_ERROR);
}

/** The same for a body of whatever bytes: 4 bytes of its length, big-endian, then the body. */
function laraman_exchange(string $path, string $body, float $timeout = 5.0, int $max = 10485760): string
{
    $deadline = microtime(true) + $timeout;
    if (strlen($body) > $max) {
        throw new LaramanException("$path: the request has " . strlen($body) . " bytes, $max are allowed", LaramanException::TOO_LARGE);
    }
    $socket = laraman_connect($path, $timeout, $deadline);
    try {
        stream_set_blocking($socket, false);
        laraman_write($socket, $path, pack('N', strlen($body)) . $body, $deadline);
        $length = unpack('N', laraman_read($socket, $path, 4, $deadline))[1];
        if ($length < 0 || $length > $max) {
            throw new LaramanException("$path: the reply has $length bytes, $max are allowed", LaramanException::TOO_LARGE);
        }
        return laraman_read($socket, $path, $length, $deadline);
    } finally {
        fclose($socket);
    }
}

/** @internal */
function laraman_connect(string $path, float $timeout, float $deadline)
{
    while (($socket = @stream_socket_client("unix://$path", $number, $message, $timeout)) === false) {
        if ($number !== 11) { // EAGAIN: its queue is full, and Linux does not wait for that here
            throw new LaramanException("$path: $message", LaramanException::UNREACHABLE);
        }
        if (microtime(true) >= $deadline) {
            throw new LaramanException("$path: no reply in time", LaramanException::LATE);
        }
        usleep(10000);
    }
    return $socket;
}

/** @internal */
function laraman_write($socket, string $path, string $data, float $deadline): void
{
    for ($sent = 0; $sent < strlen($data); $sent += $written) {
        laraman_wait($socket, $path, true, $deadline);
        $written = @fwrite($socket, substr($data, $sent, 65536));
        if ($written === false) {
            return; // it has refused the request unread; the reply, if there is one, says why
        }
    }
}

/** @internal */
function laraman_read($socket, string $path, int $size, float $deadline): string
{
    $data = '';
    while (strlen($data) < $size) {
        laraman_wait($socket, $path, false, $deadline);
        $piece = @fread($socket, min($size - strlen($data), 65536));
        if ($piece === false || ($piece === '' && feof($socket))) {
            throw new LaramanException("$path hung up before its reply was complete", LaramanException::BROKEN);
        }
        $data .= $piece;
    }
    return $data;
}

/** @internal */
function laraman_wait($socket, string $path, bool $write, float $deadline): void
{
    $reads = $write ? [] : [$socket];
    $writes = $write ? [$socket] : [];
    $others = [];
    $left = (int) (($deadline - microtime(true)) * 1e6);
    if ($left <= 0 || @stream_select($reads, $writes, $others, intdiv($left, 1000000), $left % 1000000) === 0) {
        throw new LaramanException("$path: no reply in time", LaramanException::LATE);
    }
}
