//! The controller at the other end of its socket.

mod transport;

use std::path::{Path, PathBuf};

use controller_api::{
    AS_USER, Alarm, AuditEntry, Document, Done, Import, Kind, PREFIX, Refusal, SystemInfo,
    Transaction, Undo, View,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::{Agent, Body, http};

use transport::{Nowhere, UnixConnector};

/// Asks the controller.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    socket: PathBuf,
    acting_for: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The controller refuses.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// Nobody answers, or not as a controller would.
    #[error("controller at {}: {reason}; see that it runs, or name its socket by --socket", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Client {
    /// Of the controller at `socket`; connects when it is asked. An administrator may act for another
    /// user.
    #[must_use]
    pub fn new(socket: &Path, acting_for: Option<String>) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).build();
        let connector = UnixConnector {
            path: socket.to_owned(),
        };
        Self {
            agent: Agent::with_parts(config, connector, Nowhere),
            socket: socket.to_owned(),
            acting_for,
        }
    }

    /// Does all commands, or none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn transact(&self, request: &Transaction) -> Result<Done, ClientError> {
        self.post("transactions", request)
    }

    /// Objects whose names are as `pattern` says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list(&self, kind: Kind, pattern: &str) -> Result<Vec<View>, ClientError> {
        self.get(&format!("objects/{kind}?name={}", encoded(pattern)))
    }

    /// Takes back the last change.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn undo(&self, request: &Undo) -> Result<Done, ClientError> {
        self.post("undo", request)
    }

    /// The log, newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn audit(&self) -> Result<Vec<AuditEntry>, ClientError> {
        self.get("audit")
    }

    /// What wants attention.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn alarms(&self) -> Result<Vec<Alarm>, ClientError> {
        self.get("alarms")
    }

    /// The whole model.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn export(&self) -> Result<Document, ClientError> {
        self.get("export")
    }

    /// Makes the model what a document says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn import(&self, request: &Import) -> Result<Done, ClientError> {
        self.post("import", request)
    }

    /// The controller itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn system(&self) -> Result<SystemInfo, ClientError> {
        self.get("system")
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let mut request = self.agent.get(uri(path));
        if let Some(user) = &self.acting_for {
            request = request.header(AS_USER, user);
        }
        self.answer(request.call())
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut request = self.agent.post(uri(path));
        if let Some(user) = &self.acting_for {
            request = request.header(AS_USER, user);
        }
        self.answer(request.send_json(body))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        response: Result<http::Response<Body>, ureq::Error>,
    ) -> Result<T, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable {
            socket: self.socket.clone(),
            reason,
        };
        let mut response = response.map_err(|error| unreachable(error.to_string()))?;
        let good = response.status().is_success();
        // A model may be large.
        let body = response.body_mut().with_config().limit(u64::MAX);
        if good {
            return body
                .read_json()
                .map_err(|error| unreachable(error.to_string()));
        }
        let refusal: Result<Refusal, _> = body.read_json();
        match refusal {
            Ok(refusal) => Err(ClientError::Refused(Box::new(refusal))),
            Err(_not_one) => Err(unreachable(format!("answers {}", response.status()))),
        }
    }
}

fn uri(path: &str) -> String {
    format!("http://controller{PREFIX}{path}")
}

/// Percent-encoded (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => {
                encoded.push(char::from(byte));
            }
            byte => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}
