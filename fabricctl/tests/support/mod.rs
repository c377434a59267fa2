//! A controller in this process, and a session with it.
#![expect(clippy::unwrap_used, reason = "a test that cannot begin fails")]
#![allow(dead_code, reason = "no suite uses all of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use controller::store::{RedbStore, Store};
use controller::{Controller, api};
use fabricctl::client::Client;
use fabricctl::session::{Failure, Flow, Options, Session};
use tempfile::TempDir;

/// A controller that listens until it is dropped.
pub(crate) struct Running {
    pub(crate) controller: Arc<Controller>,
    pub(crate) folder: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&folder.path().join("controller.redb")).unwrap();
        Self::with(Box::new(store), folder)
    }

    pub(crate) fn with(store: Box<dyn Store>, folder: TempDir) -> Self {
        let controller = Arc::new(Controller::start(store).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let socket = folder.path().join("controller.sock");
        let listener = runtime.block_on(async { api::listen(&socket).unwrap() });
        runtime.spawn(api::serve(
            listener,
            Arc::clone(&controller),
            std::future::pending(),
        ));
        Self {
            controller,
            folder,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("controller.sock")
    }

    pub(crate) fn session(&self) -> Session {
        self.session_with(Options::default())
    }

    pub(crate) fn session_with(&self, options: Options) -> Session {
        Session::new(Client::new(&self.socket(), None), options, |_| true)
    }

    pub(crate) fn session_as(&self, user: &str) -> Session {
        let client = Client::new(&self.socket(), Some(user.to_owned()));
        Session::new(client, Options::default(), |_| true)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a line prints.
pub(crate) fn done(session: &mut Session, line: &str) -> String {
    match session.line(line) {
        Ok(Flow::Go(output)) => output,
        other => panic!("{line}: {other:?}"),
    }
}

/// Why a line is not done.
pub(crate) fn refused(session: &mut Session, line: &str) -> String {
    match session.line(line) {
        Err(failure) => failure.to_string(),
        Ok(flow) => panic!("{line}: {flow:?}"),
    }
}

/// Runs a script.
pub(crate) fn run(session: &mut Session, text: &str) -> Result<String, Failure> {
    let mut output = String::new();
    session.script(text, |printed| output += printed)?;
    Ok(output)
}

pub(crate) fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
