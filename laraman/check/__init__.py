"""``laraman check``: what do an application's requests leave behind?

    requests    which requests are played: from a file, the OpenAPI document, the routes
    play        the application, booted in this process, and users that play requests on it
    course      the order of events: warm-up, rounds, who did it
    heap, diff, locate    the application's memory: walked, compared, and the line that changes it
    kept        what one user has sent and all others find
    report      the findings as a table and as JSON
    plugin      the same for pytest
"""
