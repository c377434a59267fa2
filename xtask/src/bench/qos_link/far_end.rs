//! The receiving process: this program again, started by the bench. It tells where it listens,
//! counts what arrives by device and time, and prints the counts once its standard input ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use fabric_transport::frame::{FrameError, FrameHeader};
use fabric_transport::link::{Filled, Link, LinkOptions, LinkReceiver, Listener};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::arrivals::{Arrivals, Counts};
use super::case::{Case, Traffic, budget};
use crate::bench::lanes::ReceivingEnd;

/// Asks for the far end instead of a bench.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct FarEnd {
    /// Set by a bench that measures in a process of its own
    #[arg(long, hide = true, value_enum, required = false, requires = "case")]
    far_end: Kind,
    /// What it measures
    #[arg(long, hide = true, value_enum, required = false, requires = "far_end")]
    case: Case,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// The director's end of a fabric link
    Lanes,
    /// A plain socket for each device
    Sockets,
}

impl FarEnd {
    /// Counts until standard input ends.
    pub(crate) fn serve(self) -> Result<ExitCode> {
        let arrivals = Arrivals::new(self.case.devices().len());
        match self.far_end {
            Kind::Lanes => serve_lanes(self.case, &arrivals)?,
            Kind::Sockets => serve_sockets(self.case, &arrivals)?,
        }
        arrivals.write(std::io::stdout().lock())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn listening(addresses: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{addresses}")?;
    Ok(out.flush()?)
}

fn wait_end() -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve_lanes(case: Case, arrivals: &Arrivals) -> Result<()> {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse()?, &LinkOptions::default())?;
    listening(&listener.address()?.to_string())?;
    // Ends with the bench, too: an ended one closed standard input.
    let stdin = std::io::stdin();
    let mut ready = [
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut ready, PollTimeout::NONE)?;
    let link = listener.accept()?.context("no connection arrived")?;
    let counting = CountingReceiver {
        receiver: link.receiver,
        arrivals: arrivals.clone(),
    };
    let link = Link {
        receiver: Box::new(counting),
        ..link
    };
    let _end = ReceivingEnd::start(link, &budget(), case.devices().len())?;
    wait_end()
}

/// Counts frames as they come off the link: the pieces of long payloads, not the whole.
#[derive(Debug)]
struct CountingReceiver {
    receiver: Box<dyn LinkReceiver>,
    arrivals: Arrivals,
}

impl LinkReceiver for CountingReceiver {
    fn fill(&mut self) -> std::io::Result<Filled> {
        let filled = self.receiver.fill()?;
        if filled == Filled::Some
            && let Ok(frames) = self.receiver.frames()
        {
            let headers = frames.into_iter().filter_map(|frame| {
                let (header, _) = FrameHeader::parse(frame, false).ok()?;
                // Control frames are of no device, number 0.
                let device = usize::try_from(header.device.0).ok()?.checked_sub(1)?;
                header.lane.map(|_data| (device, frame.len()))
            });
            self.arrivals.count(headers);
        }
        Ok(filled)
    }

    fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        self.receiver.frames()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.receiver.poll_fd()
    }
}

fn serve_sockets(case: Case, arrivals: &Arrivals) -> Result<()> {
    /// What a late reader does not lose: 100 ms of the fastest device.
    const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    let mut ports = Vec::new();
    for (device, words) in case.devices().iter().enumerate() {
        let arrivals = arrivals.clone();
        match words.traffic {
            Traffic::Ethernet => {
                let socket = UdpSocket::bind(any)?;
                setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
                ports.push(socket.local_addr()?.port().to_string());
                std::thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while let Ok(bytes) = socket.recv(&mut buffer) {
                        arrivals.count([(device, bytes)]);
                    }
                });
            }
            Traffic::Storage => {
                let listener = TcpListener::bind(any)?;
                ports.push(listener.local_addr()?.port().to_string());
                std::thread::spawn(move || {
                    let Ok((mut stream, _)) = listener.accept() else {
                        return;
                    };
                    let mut buffer = vec![0; 128 * 1024];
                    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                        arrivals.count([(device, bytes)]);
                    }
                });
            }
        }
    }
    listening(&ports.join(" "))?;
    wait_end()
}

/// A running far end; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Where it listens.
    pub(super) addresses: String,
}

impl Running {
    /// Starts one in the network namespace that the calling thread is in.
    pub(super) fn start(kind: Kind, case: Case) -> Result<Self> {
        let word = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned())
        };
        let kind = word(clap::ValueEnum::to_possible_value(&kind)).context("kind has no name")?;
        let case = word(clap::ValueEnum::to_possible_value(&case)).context("case has no name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "--far-end", &kind, "--case", &case])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the far end cannot be started")?;
        let output = child.stdout.take().context("far end has no output")?;
        let mut running = Self {
            child,
            output: BufReader::new(output),
            addresses: String::new(),
        };
        running.output.read_line(&mut running.addresses)?;
        running
            .addresses
            .truncate(running.addresses.trim_end().len());
        ensure!(!running.addresses.is_empty(), "the far end does not listen");
        Ok(running)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it counted.
    pub(super) fn finish(mut self) -> Result<Counts> {
        drop(self.child.stdin.take());
        Counts::read(&mut self.output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends by itself when its standard input does.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}
