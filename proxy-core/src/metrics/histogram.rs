//! The histograms behind the recorder: fixed buckets, one shard per core.
//!
//! The exporter's own histogram keeps every sample, 16 bytes each, until the next upkeep, allocates a block every
//! 64 samples, and lets all threads write the same cache line. A proxy records three samples a query, so ours counts
//! into buckets at once: memory is fixed, nothing is allocated on the query path, and threads do not meet.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
};

use metrics::HistogramFn;

/// A Prometheus histogram: how many samples were at or below each bound, and their sum.
pub(super) struct BucketHistogram {
    bounds: &'static [f64],
    /// A power of two of them.
    shards: Box<[Shard]>,
}

/// Most bounds a histogram may have.
const MAX_BOUNDS: usize = 20;

/// What one thread (or a few) recorded. Aligned to two cache lines, since processors fetch lines in pairs.
#[repr(align(128))]
struct Shard {
    /// Samples per bucket, not yet cumulative; the one after the last bound's is for those above every bound.
    counts: [AtomicU64; MAX_BOUNDS + 1],
    /// Sum of the samples, the bits of an `f64`.
    sum: AtomicU64,
}

impl BucketHistogram {
    /// An empty histogram over `bounds`, which ascend; at most [`MAX_BOUNDS`] of them.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_shards(bounds, cores.min(64).next_power_of_two())
    }

    fn with_shards(bounds: &'static [f64], shards: usize) -> Self {
        assert!(bounds.len() <= MAX_BOUNDS, "{} bounds, at most {MAX_BOUNDS} fit", bounds.len());
        let shard =
            || Shard { counts: [const { AtomicU64::new(0) }; _], sum: AtomicU64::new(0f64.to_bits()) };
        Self { bounds, shards: (0..shards).map(|_| shard()).collect() }
    }

    /// Appends the series in Prometheus' text format; `labels` is `name="value",…`, escaped and without braces.
    /// A sample recorded meanwhile is in this answer or in the next; the answer agrees with itself.
    pub(super) fn render(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        for (i, bound) in self.bounds.iter().enumerate() {
            count += self.count(i);
            out.push_str(&format!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}\n"));
        }
        count += self.count(self.bounds.len());
        let sum: f64 = self.shards.iter().map(|shard| f64::from_bits(shard.sum.load(Relaxed))).sum();
        out.push_str(&format!(
            "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n\
             {name}_sum{{{labels}}} {sum}\n\
             {name}_count{{{labels}}} {count}\n"
        ));
    }

    fn count(&self, bucket: usize) -> u64 {
        self.shards.iter().map(|shard| shard.counts[bucket].load(Relaxed)).sum()
    }
}

impl HistogramFn for BucketHistogram {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        if !value.is_finite() {
            return; // would spoil the sum for good
        }
        let shard = &self.shards[lane() & (self.shards.len() - 1)];
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let count = count as u64;
        shard.counts[bucket].fetch_add(count, Relaxed);
        let more = value * count as f64;
        let mut seen = shard.sum.load(Relaxed);
        while let Err(now) =
            shard.sum.compare_exchange_weak(seen, (f64::from_bits(seen) + more).to_bits(), Relaxed, Relaxed)
        {
            seen = now;
        }
    }
}

/// A small number of this thread's own; threads get them in turn.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: Cell<usize> = const { Cell::new(usize::MAX) });
    LANE.with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT.fetch_add(1, Relaxed));
        }
        lane.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(histogram: &BucketHistogram, labels: &str) -> String {
        let mut out = String::new();
        histogram.render("h", labels, &mut out);
        out
    }

    #[test]
    fn buckets_are_cumulative_and_a_bound_belongs_to_its_own() {
        let histogram = BucketHistogram::with_shards(&[0.5, 1.0], 4);
        for value in [0.25, 0.5, 0.75, 8.0] {
            histogram.record(value);
        }
        histogram.record_many(1.0, 2);
        let want = "h_bucket{a=\"b\",le=\"0.5\"} 2\nh_bucket{a=\"b\",le=\"1\"} 5\nh_bucket{a=\"b\",le=\"+Inf\"} 6\n\
                    h_sum{a=\"b\"} 11.5\nh_count{a=\"b\"} 6\n";
        assert_eq!(rendered(&histogram, "a=\"b\""), want);
    }

    #[test]
    fn no_sample_is_lost_between_threads() {
        for shards in [1, 2] {
            let histogram = BucketHistogram::with_shards(&[1.0], shards);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..10_000).for_each(|_| histogram.record(0.5)));
                }
            });
            let text = rendered(&histogram, "");
            assert!(text.contains("h_bucket{le=\"1\"} 40000\n"), "{text}");
            assert!(text.contains("h_sum{} 20000\n"), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_dropped() {
        let histogram = BucketHistogram::with_shards(&[1.0], 1);
        histogram.record(f64::NAN);
        histogram.record(f64::INFINITY);
        assert!(rendered(&histogram, "").contains("h_sum{} 0\nh_count{} 0\n"));
    }
}
