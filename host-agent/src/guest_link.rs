//! Tells guests of the links of their vNICs, through QEMU's monitor.
//!
//! A vhost-user back end cannot: QEMU keeps the link status of a network device to itself and takes
//! no change of it over the vhost-user socket. `set_link` of QMP is what reaches a guest, as an
//! interrupt for a changed configuration.
//!
//! The monitor of a VM is the socket `VM.link.qmp` in the host's run-dir: the arguments that
//! `qemu-args` prints have QEMU serve it. It is for this alone: QEMU serves one client of a monitor at a time. Where there is none, the guest
//! takes its link for up as long as its vhost-user socket is.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use fabric_config::HostConfig;
use orimono_qemu::qmp::Qmp;
use serde_json::json;
use vnic_backend::{LinkNews, VnicDevice};

/// How long QEMU may take for an answer. It serves one client of a monitor at a time.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// When a QEMU that did not answer is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The monitor of a VM.
pub(crate) fn monitor_path(host: &HostConfig, vm: &str) -> PathBuf {
    host.run_dir.join(format!("{vm}.link.qmp"))
}

/// What a thread is told.
enum Told {
    News(LinkNews),
    End,
}

/// Tells the guest of one vNIC until it is dropped; what it is at then, it does not begin again.
#[derive(Debug)]
pub(crate) struct GuestLink(Sender<Told>);

impl GuestLink {
    /// Watches `device`, which QEMU knows by its name.
    pub(crate) fn start(device: Arc<VnicDevice>, monitor: PathBuf) -> io::Result<Self> {
        let (told, hears) = mpsc::channel();
        let watcher = told.clone();
        device.watch_link(Box::new(move |news| {
            // Whoever is told no more has ended.
            let _ended = watcher.send(Told::News(news));
        }));
        let builder = thread::Builder::new().name(format!("{} link", device.config().name));
        builder.spawn(move || serve(&device, &monitor, &hears))?;
        Ok(Self(told))
    }
}

impl Drop for GuestLink {
    fn drop(&mut self) {
        // Not waited for: QEMU may take its time.
        let _ended = self.0.send(Told::End);
    }
}

fn serve(device: &VnicDevice, monitor: &Path, hears: &Receiver<Told>) {
    let name = &device.config().name;
    // A QEMU that was told nothing takes the link for up.
    let (mut known, mut failed) = (true, false);
    loop {
        let heard = if failed {
            hears.recv_timeout(AGAIN_AFTER)
        } else {
            hears.recv().map_err(|_gone| RecvTimeoutError::Disconnected)
        };
        let mut all = match heard {
            Ok(told) => vec![told],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Only the newest state counts.
        all.extend(hears.try_iter());
        for told in all {
            match told {
                Told::News(LinkNews::Changed) => {}
                Told::News(LinkNews::DriverStarts) => known = true,
                Told::End => return,
            }
        }
        let is_up = device.link_is_up();
        failed = false;
        if is_up == known {
            continue;
        }
        match set_link(monitor, name, is_up) {
            Ok(true) => {
                known = is_up;
                tracing::info!(vnic = name, is_up, "guest is told of its link");
            }
            // There is no QEMU; the next one begins with the link up.
            Ok(false) => tracing::debug!(vnic = name, is_up, ?monitor, "no monitor"),
            Err(error) => {
                failed = true;
                tracing::debug!(vnic = name, is_up, "link is not told: {error:#}");
            }
        }
    }
}

/// Has QEMU set the link of its device `name`; false: nobody serves the monitor.
fn set_link(monitor: &Path, name: &str, is_up: bool) -> Result<bool> {
    let stream = match UnixStream::connect(monitor) {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(false),
            _ => return Err(error).context("monitor cannot be reached"),
        },
    };
    let mut qmp = Qmp::handshake(stream, ANSWER_MAX)?;
    let arguments = json!({ "name": name, "up": is_up });
    let command = json!({ "execute": "set_link", "arguments": arguments });
    qmp.execute(&command, ANSWER_MAX)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use fabric_transport::frame::DeviceId;
    use fabric_transport::{LaneClient, VirtualLane};
    use vhost_user_session::VirtioDevice;
    use vnic_backend::VnicConfig;

    use super::*;

    /// Answers one client as QEMU does; returns what it was told to do.
    fn answer(listener: &UnixListener) -> serde_json::Value {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"QMP\": {}}\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut last = None;
        for _ in 0..2 {
            last = lines.next();
            stream.write_all(b"{\"return\": {}}\n").unwrap();
        }
        let command: serde_json::Value = serde_json::from_str(&last.unwrap().unwrap()).unwrap();
        assert_eq!(command["execute"], "set_link");
        command["arguments"].clone()
    }

    #[test]
    fn qemu_is_told_what_it_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = folder.path().join("vm1.qmp");
        let config = VnicConfig::new("vn01.vm1", DeviceId(1), [2, 0, 0, 0, 0, 1]);
        let device = VnicDevice::new(config).unwrap();
        let link = GuestLink::start(device.clone(), monitor.clone()).unwrap();
        // Nobody is there.
        device.features_acked(0);
        let listener = UnixListener::bind(&monitor).unwrap();
        // Without lanes the link is down, which a driver that starts does not know.
        device.features_acked(0);
        let down = json!({"name": "vn01.vm1", "up": false});
        assert_eq!(answer(&listener), down);
        // It knows now. A driver of another QEMU does not.
        device.receive(VirtualLane::TaskManagement, &[8, 0, 0, 0, 0, 0, 0, 0]);
        device.features_acked(0);
        assert_eq!(answer(&listener), down);
        // A host agent that ends says no more.
        drop(link);
        device.features_acked(0);
        while Arc::strong_count(&device) > 1 {
            thread::yield_now();
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }
}
