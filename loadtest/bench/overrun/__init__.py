"""How much buffer is right? Trips booked with predicted ends, which then last as they did.

    python -m loadtest.bench.overrun [TRIPS]

The trips are synthetic (`loadtest.trips.demand`), or those of a file of the TLC. From
the first half of them, in time, it is learnt how long trips take; the second half is
booked ahead, each trip with an end predicted at some quantile of that, and packed on
drivers by first fit. Then the trips last as long as they really did. A driver who is
late starts the next trip late, and nothing is done about it. What is counted, against
the quantile: who is late and how much, what was held and not used, and how many
drivers it took. No clock is involved: the same seed gives the same result.

What can be known
-----------------
A service knows the way before it knows the time: from where to where, and when. A
trip of a file has its distance and its hour; see `loadtest.trips.distances`. The
durations of the synthetic demand come from no distance, so one is drawn for each that
it may have come from. If the logarithm of the duration is normal with variance s², and
the distance explains a share r of that, then the logarithm of the distance, given the
duration, is normal as well, with r times the duration's deviation as its mean and
r (1 - r) s² as its variance (in units in which the median trip has distance 1). r is
`Plan.known`; on the trips to which the demand was fitted it is 0.72.

The two ways to predict
-----------------------
- `learnt`: from trips of about that distance at that hour, or coarser where too few
  were seen (`booking.predictions`);
- `alike`: from all trips alike, as if nothing were known of a trip. The control for
  what knowing is worth.

Trips of more than `LONGEST_MIN` minutes are left out, and counted. In the TLC's files
nearly all of them last 23 to 24 hours: somebody forgot to stop the taximeter.
"""
