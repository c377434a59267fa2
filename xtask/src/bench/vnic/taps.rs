//! The TAP interfaces around the measurement, in the lab's namespace: the director's port, a bare
//! one beside it, and one whose frames the kernel routes to either of them.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use io_director::ethernet::Tap;
use orimono_tests::lab::Namespace;

use super::frames::Mac;

/// The director's port.
pub(super) const PORT: &str = "orimono0";
/// Read and written without any back end.
pub(super) const BARE: &str = "bare0";
const SOURCE: &str = "source0";
/// Of [`SOURCE`]: what is sent to it is routed.
pub(super) const ROUTER: Mac = [2, 0, 0, 0, 9, 1];
const MTU: u16 = 1500;

/// Behind [`PORT`] and [`BARE`], as the kernel knows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Station {
    pub(super) mac: Mac,
    pub(super) address: [u8; 4],
}

/// Behind [`BARE`].
pub(super) const NOBODY: Station = Station {
    mac: [2, 0, 0, 0, 9, 2],
    address: [10, 9, 2, 9],
};

#[derive(Debug)]
pub(super) struct Taps {
    source: Tap,
    pub(super) bare: Tap,
    counters: File,
}

impl Taps {
    /// Makes them; `guests` are behind [`PORT`], in 10.9.1.0/24.
    ///
    /// # Errors
    /// The kernel refuses something.
    pub(super) fn new(namespace: &Namespace, guests: &[Station]) -> Result<Self> {
        let taps = namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("routing")?;
            Ok(Self {
                source: Tap::open(SOURCE, true, MTU)?,
                bare: Tap::open(BARE, true, MTU)?,
                // It stays the namespace's when others read it.
                counters: File::open("/proc/thread-self/net/dev")?,
            })
        })?;
        namespace.ip(&format!("link set {SOURCE} address {}", text(ROUTER)))?;
        for (subnet, name) in [SOURCE, PORT, BARE].iter().enumerate() {
            namespace.ip(&format!("addr add 10.9.{subnet}.1/24 dev {name}"))?;
        }
        let guests = guests.iter().map(|guest| (PORT, *guest));
        for (name, Station { mac, address }) in guests.chain([(BARE, NOBODY)]) {
            let [a, b, c, d] = address;
            let mac = text(mac);
            namespace.ip(&format!(
                "neigh add {a}.{b}.{c}.{d} lladdr {mac} nud permanent dev {name}"
            ))?;
        }
        Ok(taps)
    }

    /// Frames that the kernel has taken from the TAP interface `name`.
    ///
    /// # Errors
    /// There is no such interface.
    pub(super) fn taken(&self, name: &str) -> Result<u64> {
        let mut text = vec![0; 16 * 1024];
        let bytes = self.counters.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..bytes).unwrap_or_default());
        taken(&text, name).with_context(|| format!("no interface {name}"))
    }

    /// Has the kernel route `burst` on.
    ///
    /// # Errors
    /// It refuses.
    pub(super) fn route(&self, burst: &[u8]) -> Result<()> {
        Ok(self.source.write([burst, &[]])?)
    }

    /// Writes one frame to the bare TAP; returns whether it was taken.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn write(&self, frame: &[u8]) -> Result<bool> {
        match self.bare.write([frame, &[]]) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts what can be read of the bare TAP with `bytes` of header and frame, until told to stop
    /// and nothing is left.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read_all(
        &self,
        bytes: usize,
        count: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<()> {
        let mut room = vec![0; 70_000];
        let mut arrived = 0;
        loop {
            match self.bare.read(&mut room) {
                Ok(read) => arrived += u64::from(read == bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stop.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                Err(error) => return Err(error.into()),
            }
            count.store(arrived, Ordering::Release);
        }
    }

    /// What the kernel has taken from `name` when no more comes.
    ///
    /// # Errors
    /// There is no such interface.
    pub(super) fn settled(&self, name: &str) -> Result<u64> {
        settled(|| self.taken(name))
    }
}

/// The last value of a counter that does not change any more for a while.
///
/// # Errors
/// It cannot be read.
pub(super) fn settled(mut count: impl FnMut() -> Result<u64>) -> Result<u64> {
    const QUIET: Duration = Duration::from_millis(5);
    let (mut last, mut since) = (count()?, Instant::now());
    while since.elapsed() < QUIET {
        let now = count()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The packets that `name` received, of a text like /proc/net/dev.
fn taken(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(known, _)| known.trim() == name)?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_by_interface() {
        let text =
            "Inter-|   Receive\n face |bytes    packets errs\n    lo:  10  1 0\nbare0: 4096 64 0\n";
        assert_eq!(taken(text, "bare0"), Some(64));
        assert_eq!(taken(text, "bare"), None);
    }

    #[test]
    fn an_address_is_written_as_ip_reads_it() {
        assert_eq!(text(ROUTER), "02:00:00:00:09:01");
    }
}
