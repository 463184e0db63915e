"""The domain of a taxi booking system: it knows nothing of HTTP.

Read it in this order: `time_window`, `bookings`, `drivers`, then the three
ports (`calendars`, `ledgers`, `rosters`), then the strategies behind them
(`detection/`, `prevention/`, `allocation/`), then the fourth act (`overrun`, with
`predictions`), and what a real fleet needs besides: `places`, `travel` and
`blocking`, `shifts`, `recurrence`.
"""
