"""Load scenarios for Locust: one file each, its name the scenario's.

    locust -f loadtest/scenarios/rush_hour.py --host http://127.0.0.1:8000
    locust -f loadtest/scenarios/rush_hour.py --host … --headless -u 32 -r 32 -t 30s --processes 2

The first serves Locust's web page, where the knobs are fields of the form; the
second runs from the command line. A scenario makes a fleet of its own over
HTTP, or finds it again, and then sends its requests. Files whose names begin
with an underscore are what the scenarios share.

A scenario imports locust, the standard library and its siblings, and nobody
imports a scenario: to import locust is to have `socket`, `ssl`, `threading` and
`time.sleep` replaced by their counterparts of gevent. That is also why threads
in these files are cheap: they are greenlets.

Arrivals
--------

*Closed* (`--arrivals closed`, the default): each of the `-u` users sends its
next request when the last one is answered, without a pause. *Open*
(`--arrivals open --rate 500`): requests are due at times of their own, whether
or not the service keeps up, and latency counts from the *intended* start. See
docs/07-measuring.md for why this matters.

The history
-----------

With `--history DIR` every Locust process that sends requests writes
`DIR/<host>-<pid>.jsonl`: one JSON object a line, one line a request, in the
order in which they were done with. The keys, always all of them:

`scenario`          the name of the file, such as `"rush_hour"`
`action`            `"book"`, `"reschedule"`, `"cancel"` or `"look"`
`rider_id`          the rider for whom it was booked, or null: of anything but a booking that was
                    sent
`driver_id`         the driver who was asked for, or null for any; of a reschedule or a
                    cancellation, the driver who holds the booking
`booked_driver_id`  the driver whose time the booking holds according to the answer, or null
`start`, `end`      the window that was asked for, RFC 3339 in UTC; of a cancellation, and of
                    a look at a booking, the window that the booking has
`booking_id`        the booking that was made, moved, cancelled or looked at, or null
`intended_s`        when the request was to be sent; for closed arrivals, when it was sent
`sent_s`            when it was sent; null if it never was
`answered_s`        when its whole answer was there; null if there was none
`status`            the HTTP status; 0 without an answer
`problem`           the kind of problem that was answered, such as `"booking-conflict"`, or null
`measured`          false during the warm-up

Times are seconds since 1970 by a clock that does not jump: it is set once, when
the process starts. A request with status 0 that was sent may or may not have
been carried out. One that was never sent (`sent_s` is null) was waiting for a
connection when the test was stopped.

The process that makes the fleet writes `DIR/setup.json`: `scenario`, `fleet`,
`driver_ids`, `rider_ids`, `seed`.
"""
