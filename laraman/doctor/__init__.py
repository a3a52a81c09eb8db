"""What a project that runs under uvicorn meets under laraman: ``laraman doctor``."""
