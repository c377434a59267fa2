//! The system controller of Orimono.
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT; 1 failed; 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use controller::store::RedbStore;
use controller::{Controller, api, reconcile};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Holds what directors and hosts are to be, and hands it to them
#[derive(Debug, Parser)]
#[command(name = "controller", version)]
struct Arguments {
    /// Where the model is kept
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/orimono/controller.redb"
    )]
    store: PathBuf,
    /// Where fabricctl and other clients connect
    #[arg(long, value_name = "PATH", default_value = controller_api::SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Where each director and host finds its lab file, in a folder called as it is
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/orimono/nodes")]
    nodes: PathBuf,
    /// What to log: error, warn, info, debug, trace, or a filter as of RUST_LOG
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "controller: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("--log {} is no filter: try info", arguments.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let store = RedbStore::open(&arguments.store)?;
    let controller = Arc::new(Controller::start(Box::new(store))?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no threads")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context("signals cannot be taken")?;
        let mut interrupted = signal(SignalKind::interrupt()).context("signals cannot be taken")?;
        let listener = api::listen(&arguments.socket)
            .with_context(|| format!("socket {}", arguments.socket.display()))?;
        let nodes = arguments.nodes.clone();
        tokio::spawn(reconcile::run(Arc::clone(&controller), nodes));
        tracing::info!(socket = %arguments.socket.display(), "controller ready");
        let stop = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        };
        api::serve(listener, controller, stop)
            .await
            .context("the socket failed")
    })?;
    // A question to a node may take its time-out; it need not be waited for.
    runtime.shutdown_background();
    drop(std::fs::remove_file(&arguments.socket));
    tracing::info!("controller stops");
    Ok(())
}
