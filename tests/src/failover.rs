//! A stock guest at work over two links that a test may break: fio with verification on a vHBA, and
//! a TCP stream from a vNIC, both for as long as the test wants.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fabric_transport::link::LinkAddress;
use orimono_qemu::{CommandId, Guest};

use crate::impairment::{Direction, Hole, Impairment};
use crate::lab::{self, Lab, Namespace, Process};

/// Priority of a link in the session: its place in the lab file.
pub type Priority = usize;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
shared-luns = true
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "lun1"
port = "12/1"
file = "@DIR@/lun1"
[[host]]
name = "host1"
director = ["@LINK0@", "@LINK1@"]
@HOST@
hold-down-ms = 600_000
run-dir = "@DIR@/host1"
rate = "1G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "100M", pir = "200M" }
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun1" } ]
"#;

/// How long the agent takes to notice and record what a test did. A guard, not a figure.
const PATIENCE: Duration = lab::PATIENCE;

/// A change of path, as the agent's log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Why.
    pub cause: String,
    /// Microseconds from the last sign of progress before to the first after.
    pub gap_us: u64,
}

/// The lab with its guest, at work.
#[derive(Debug)]
pub struct Failover {
    /// The lab.
    pub lab: Lab,
    /// The links, by priority.
    pub links: [Impairment; 2],
    guest: Guest,
    /// Two commands that run until they are told to stop, and their texts.
    works: [(CommandId, String); 2],
    // Held for its end.
    _server: Process,
}

impl Failover {
    /// Boots the guest and starts its work. `host` is added to the words of the host; `prepare` is
    /// called before the guest's first frame.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(
        host: &str,
        work: Duration,
        prepare: impl FnOnce(&Lab) -> Result<()>,
    ) -> Result<Self> {
        let namespace = Namespace::new()?;
        let target: LinkAddress = "tcp:127.0.0.1:7471".parse()?;
        let link = || namespace.run(|| Impairment::start(target.clone()));
        let links = [link()?, link()?];
        let mut text = LAB.replace("@HOST@", host);
        for (priority, link) in links.iter().enumerate() {
            let address = link.address().to_string();
            text = text.replace(&format!("@LINK{priority}@"), &address);
        }
        let lab = Lab::start_in(namespace, &text)?;
        let agent = lab.agents.first().and_then(Option::as_ref);
        let agent = agent.context("no host agent")?;
        agent.wait_line("link joined its session", 2, PATIENCE)?;
        prepare(&lab)?;
        let guest = lab.boot("vm1")?;
        lab::address(&guest, 0, "10.1.0.11/24")?;
        let reach = "for i in $(seq 60); do ping -c 1 -W 1 10.1.0.1 && exit 0; done; exit 1";
        lab::run(&guest, reach)?;
        let server = lab.serve(
            "iperf3",
            &["-s", "--forceflush", "--logfile", "/dev/stderr"],
        )?;
        server.wait_line("Server listening", 1, PATIENCE)?;
        let disk = lab::disk(&guest, "lun1")?;
        let seconds = work.as_secs();
        let works = [
            format!(
                "fio --name=verify --filename=/dev/{disk} --rw=randrw --bs=16k --size=8m \
                 --time_based --runtime={seconds} --direct=1 --ioengine=libaio --iodepth=8 \
                 --verify=crc32c --verify_fatal=1 --rate_iops=200"
            ),
            format!("iperf3 -c 10.1.0.1 -t {seconds} -b 50M"),
        ];
        let [io, stream] = works;
        let works = [(guest.spawn(&io)?, io), (guest.spawn(&stream)?, stream)];
        server.wait_line("Accepted connection", 1, PATIENCE)?;
        Ok(Self {
            lab,
            links,
            guest,
            works,
            _server: server,
        })
    }

    fn agent(&self) -> Result<&Process> {
        let agent = self.lab.agents.first().and_then(Option::as_ref);
        agent.context("no host agent")
    }

    /// Closes the link of `priority`, which carries the frames; returns when they go by the other
    /// and the link has been made again. The agent's record of it.
    ///
    /// # Errors
    /// It does not happen.
    pub fn close(&self, priority: Priority) -> Result<Change> {
        self.broken(priority, |link| link.reset())
    }

    /// Lets everything on the link of `priority`, which carries the frames, disappear without a
    /// word, until the frames go by the other.
    ///
    /// # Errors
    /// It does not happen.
    pub fn silence(&self, priority: Priority) -> Result<Change> {
        self.broken(priority, |link| {
            link.black_hole(Direction::Both, Hole::Silent)
        })
    }

    fn broken(
        &self,
        priority: Priority,
        break_it: impl FnOnce(&Impairment) -> Result<()>,
    ) -> Result<Change> {
        let agent = self.agent()?;
        let link = self.links.get(priority).context("no such link")?;
        let changes = agent.count_lines("frames go by another link");
        let joined = agent.count_lines("link joined its session");
        break_it(link)?;
        let line = agent.wait_line("frames go by another link", changes + 1, PATIENCE)?;
        link.black_hole(Direction::Both, Hole::Off)?;
        agent.wait_line("link joined its session", joined + 1, PATIENCE)?;
        change(&line)
    }

    /// Waits for the end of the guest's work, and expects that nothing of it went wrong.
    ///
    /// # Errors
    /// A verify error, a SCSI error, or a TCP connection that broke.
    pub fn finish(self) -> Result<()> {
        for (command, text) in self.works {
            let output = self.guest.wait(command, PATIENCE * 4)?;
            lab::succeeded(&text, &output)?;
        }
        let errors = lab::run(&self.guest, "dmesg | grep -c 'I/O error' || true")?;
        ensure!(
            errors.trim() == "0",
            "{} I/O errors in the guest",
            errors.trim()
        );
        Ok(())
    }
}

fn change(line: &str) -> Result<Change> {
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        Some(rest)
    };
    let gap = field("gap_us").and_then(|rest| rest.split_whitespace().next());
    let gap_us = gap.and_then(|gap| gap.parse().ok());
    let cause = field("cause").and_then(|rest| rest.split_once(" gap_us"));
    match (cause, gap_us) {
        (Some((cause, _)), Some(gap_us)) => Ok(Change {
            cause: cause.to_owned(),
            gap_us,
        }),
        _ => anyhow::bail!("no change of path: {line}"),
    }
}
