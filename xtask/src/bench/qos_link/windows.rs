//! From bytes by tick to the error in windows of a length.

/// A length that errors are looked at, and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Length {
    pub(super) name: &'static str,
    pub(super) ticks: usize,
    /// The largest error.
    pub(super) goal: f64,
    /// The most it may be of HTB's.
    pub(super) of_htb_max: f64,
    /// How far what the whole link carried may be from its rate. In a window with less the machine
    /// did not run us, and what was late arrives in the next: neither says how a link is divided.
    pub(super) stall_max: f64,
}

pub(super) const LENGTHS: [Length; 3] = [
    Length {
        name: "1 s",
        ticks: 100,
        goal: 0.005,
        // Only printed: both are about as exact as `stall_max` tells them apart.
        of_htb_max: f64::INFINITY,
        stall_max: 0.002,
    },
    Length {
        name: "100 ms",
        ticks: 10,
        goal: 0.02,
        of_htb_max: 1.0,
        stall_max: 0.01,
    },
    Length {
        name: "10 ms",
        ticks: 1,
        goal: 0.10,
        of_htb_max: 1.0,
        stall_max: 0.03,
    },
];

/// Charged bytes of each device in each tick of a run.
#[derive(Debug)]
pub(super) struct Measured(Vec<Vec<f64>>);

/// The windows of one length.
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// How far each device is from what it is entitled to, as a part of that, window by window.
    distances: Vec<Vec<f64>>,
    /// Windows in which the link did not carry its rate.
    pub(super) set_aside: usize,
}

impl Measured {
    /// `factors` are charged bytes by counted byte.
    pub(super) fn new(rows: &[Vec<u64>], factors: &[f64]) -> Self {
        let charged = |row: &Vec<u64>| {
            let pairs = row.iter().zip(factors);
            pairs
                .map(|(bytes, factor)| *bytes as f64 * factor)
                .collect()
        };
        Self(rows.iter().map(charged).collect())
    }

    /// Windows of a length, against the bytes in a tick that devices are entitled to; together
    /// they are entitled to the link.
    pub(super) fn windows(&self, length: Length, entitled: &[f64]) -> Windows {
        let mut windows = Windows::default();
        let scale = length.ticks as f64;
        let link = entitled.iter().sum::<f64>() * scale;
        for window in self.0.chunks_exact(length.ticks) {
            let bytes = sum(window);
            if (bytes.iter().sum::<f64>() / link - 1.0).abs() > length.stall_max {
                windows.set_aside += 1;
                continue;
            }
            let pairs = bytes.iter().zip(entitled);
            let distances = pairs.map(|(bytes, entitled)| bytes / (entitled * scale) - 1.0);
            windows.distances.push(distances.collect());
        }
        windows
    }
}

impl Windows {
    pub(super) fn extend(&mut self, more: Self) {
        self.distances.extend(more.distances);
        self.set_aside += more.set_aside;
    }

    /// Windows that count.
    pub(super) fn counted(&self) -> usize {
        self.distances.len()
    }

    /// The mean distance of each device, signed. Nothing without windows.
    pub(super) fn mean(&self) -> Vec<f64> {
        let count = self.counted() as f64;
        let sums = sum(&self.distances).into_iter();
        sums.map(|sum| sum / count).collect()
    }

    /// The error of each device that one window in a hundred may exceed; with fewer windows, the
    /// largest one. Nothing without windows.
    pub(super) fn percentile_99(&self) -> Vec<f64> {
        let devices = self.distances.first().map_or(0, Vec::len);
        let of = |device| {
            let of_device = self.distances.iter().filter_map(|all| all.get(device));
            let mut errors: Vec<f64> = of_device.map(|distance: &f64| distance.abs()).collect();
            errors.sort_by(f64::total_cmp);
            errors.get((errors.len() * 99).div_ceil(100) - 1).copied()
        };
        (0..devices).filter_map(of).collect()
    }
}

fn sum(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sums = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        for (sum, bytes) in sums.iter_mut().zip(row) {
            *sum += bytes;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_in_which_the_link_stood_are_set_aside() {
        let [_, _, tick] = LENGTHS;
        let rows = [
            vec![600, 200],
            vec![500, 200],
            vec![610, 190],
            vec![700, 200],
        ];
        let measured = Measured::new(&rows, &[1.0, 2.0]);
        let windows = measured.windows(tick, &[600.0, 400.0]);
        assert_eq!((windows.counted(), windows.set_aside), (2, 2));
        let mean = windows.mean();
        assert!((mean[0] - 1.0 / 120.0).abs() < 1e-9 && (mean[1] + 0.025).abs() < 1e-9);
        let errors = windows.percentile_99();
        assert!((errors[0] - 1.0 / 60.0).abs() < 1e-9 && (errors[1] - 0.05).abs() < 1e-9);
    }

    #[test]
    fn one_window_in_a_hundred_may_exceed_the_percentile() {
        let mut windows = Windows::default();
        for error in 1..=200 {
            windows.distances.push(vec![-f64::from(error)]);
        }
        assert_eq!(windows.percentile_99(), [198.0]);
        windows.distances.truncate(15);
        assert_eq!(windows.percentile_99(), [15.0]);
        assert!(Windows::default().percentile_99().is_empty());
    }
}
