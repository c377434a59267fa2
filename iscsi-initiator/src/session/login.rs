//! The login phase (RFC 7143 sections 6.3 and 13): security, then operational negotiation.
//!
//! ```text
//! Offered --None--> Operational --transit--> done
//!    |                  ^
//!   CHAP --> Challenged --> Answered
//! ```

use crate::name::{Credentials, IscsiName};

use super::chap::{self, CHALLENGE_BYTES_MAX, ENTROPY_BYTES};
use super::error::{SessionError, quoted, violation};
use super::negotiation::{Offer, Parameters};
use super::text;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// Most requests of one login; a good one takes four.
const REQUESTS_MAX: u32 = 32;
/// CHAP_A of MD5.
const MD5: &str = "5";

/// Who logs in where.
#[derive(Clone, Debug)]
pub(crate) struct LoginConfig {
    pub(crate) initiator: IscsiName,
    /// `None`: a discovery session.
    pub(crate) target: Option<IscsiName>,
    pub(crate) credentials: Credentials,
    pub(crate) offer: Offer,
    /// For the challenge to the target; never used twice.
    pub(crate) entropy: [u8; ENTROPY_BYTES],
}

/// A login request to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginRequest {
    pub(crate) transit: bool,
    pub(crate) stages: (u8, u8),
    pub(crate) text: Vec<u8>,
}

/// The fields of a login response that say how it goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoginResponse {
    pub(crate) transit: bool,
    pub(crate) continues: bool,
    pub(crate) stages: (u8, u8),
    pub(crate) class: u8,
    pub(crate) detail: u8,
}

#[derive(Debug)]
pub(crate) enum Step {
    Send(LoginRequest),
    Done(Parameters),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Offered,
    Challenged,
    Answered,
    Operational,
}

#[derive(Debug)]
pub(crate) struct Login {
    config: LoginConfig,
    stage: Stage,
    parameters: Parameters,
    /// Whether the target has proved itself, or need not.
    target_proved: bool,
    requests: u32,
    text: Vec<u8>,
}

impl Login {
    /// A login and its first request.
    pub(crate) fn new(config: LoginConfig) -> (Self, LoginRequest) {
        let mut text = Vec::new();
        text::append(&mut text, "InitiatorName", config.initiator.as_str());
        if let Some(target) = &config.target {
            text::append(&mut text, "SessionType", "Normal");
            text::append(&mut text, "TargetName", target.as_str());
        } else {
            text::append(&mut text, "SessionType", "Discovery");
        }
        let methods = match config.credentials {
            Credentials::None => "None",
            Credentials::Chap(_) => "CHAP,None",
            Credentials::MutualChap(_) => "CHAP",
        };
        text::append(&mut text, "AuthMethod", methods);
        let login = Self {
            stage: Stage::Offered,
            parameters: Parameters::silent_target(&config.offer),
            target_proved: config.credentials.of_target().is_none(),
            requests: 1,
            text: Vec::new(),
            config,
        };
        // With a choice of methods the target has something to say first.
        let transit = login.config.credentials.own().is_none();
        (login, security(transit, text))
    }

    /// Takes a response and says what is next.
    pub(crate) fn handle_response(
        &mut self,
        response: LoginResponse,
        data: &[u8],
    ) -> Result<Step, SessionError> {
        if response.class != 0 {
            return Err(refused(response, data));
        }
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            return Err(violation("Login Response", "came too often"));
        }
        text::collect(&mut self.text, data, text::TEXT_BYTES_MAX)?;
        let operational = self.stage == Stage::Operational;
        let (current, next) = if operational {
            (OPERATIONAL, FULL_FEATURE)
        } else {
            (SECURITY, OPERATIONAL)
        };
        if response.stages.0 != current || (response.transit && response.stages.1 != next) {
            return Err(violation("Login Response", "is of another stage"));
        }
        if response.continues {
            if response.transit {
                return Err(violation("Login Response", "both ends and goes on"));
            }
            return Ok(Step::Send(LoginRequest {
                transit: false,
                stages: (current, next),
                text: Vec::new(),
            }));
        }
        let text = std::mem::take(&mut self.text);
        let pairs = text::pairs(&text)?;
        if operational {
            self.operational(response.transit, &pairs)
        } else {
            self.security(response.transit, &pairs).map(Step::Send)
        }
    }

    fn security(
        &mut self,
        transit: bool,
        pairs: &[(&str, &str)],
    ) -> Result<LoginRequest, SessionError> {
        let value = |key| {
            let pair = pairs.iter().find(|(name, _)| *name == key);
            pair.map(|(_, value)| *value)
        };
        if self.stage == Stage::Answered {
            self.check_target(value("CHAP_N"), value("CHAP_R"))?;
        }
        if transit {
            if !self.target_proved {
                return Err(SessionError::TargetUnproven);
            }
            return Ok(self.offer());
        }
        match self.stage {
            Stage::Offered => self.method(value("AuthMethod")),
            Stage::Challenged => {
                if value("CHAP_A") != Some(MD5) {
                    let method = quoted(value("CHAP_A").unwrap_or("none"));
                    let method = format!("CHAP algorithm {method}");
                    return Err(SessionError::Authentication { method });
                }
                self.answer(value("CHAP_I"), value("CHAP_C"))
            }
            Stage::Answered => Ok(security(true, Vec::new())),
            Stage::Operational => Err(violation("Login Response", "is of another stage")),
        }
    }

    /// What the target chose of our offer.
    fn method(&mut self, method: Option<&str>) -> Result<LoginRequest, SessionError> {
        match (method, &self.config.credentials) {
            (Some("CHAP"), Credentials::Chap(_) | Credentials::MutualChap(_)) => {
                self.stage = Stage::Challenged;
                let mut text = Vec::new();
                text::append(&mut text, "CHAP_A", MD5);
                Ok(security(false, text))
            }
            (Some("None") | None, Credentials::Chap(_) | Credentials::None) => {
                Ok(security(true, Vec::new()))
            }
            (method, _) => {
                let method = quoted(method.unwrap_or("none"));
                Err(SessionError::Authentication { method })
            }
        }
    }

    fn answer(
        &mut self,
        identifier: Option<&str>,
        challenge: Option<&str>,
    ) -> Result<LoginRequest, SessionError> {
        let wrong = || violation("Login Response", "has no proper CHAP challenge");
        let identifier = identifier
            .and_then(text::number)
            .and_then(|number| u8::try_from(number).ok())
            .ok_or_else(wrong)?;
        let challenge = challenge
            .and_then(|challenge| text::binary(challenge, CHALLENGE_BYTES_MAX))
            .ok_or_else(wrong)?;
        let own = self.config.credentials.own().ok_or_else(wrong)?;
        let answer = chap::response(identifier, own.secret(), &challenge);
        let mut text = Vec::new();
        text::append(&mut text, "CHAP_N", own.name());
        text::append(&mut text, "CHAP_R", &text::hexadecimal(&answer));
        if self.config.credentials.of_target().is_some() {
            let [identifier, own_challenge @ ..] = &self.config.entropy;
            // Section 9.2.1: it would only have to send our own answer back.
            if challenge == own_challenge {
                return Err(SessionError::TargetUnproven);
            }
            text::append(&mut text, "CHAP_I", &identifier.to_string());
            text::append(&mut text, "CHAP_C", &text::hexadecimal(own_challenge));
        }
        self.stage = Stage::Answered;
        Ok(security(true, text))
    }

    fn check_target(
        &mut self,
        name: Option<&str>,
        answer: Option<&str>,
    ) -> Result<(), SessionError> {
        let Some(target) = self.config.credentials.of_target() else {
            return Ok(());
        };
        let [identifier, challenge @ ..] = &self.config.entropy;
        let right = chap::response(*identifier, target.secret(), challenge);
        let answer = answer.and_then(|answer| text::binary(answer, right.len()));
        if name == Some(target.name()) && answer.as_deref() == Some(&right) {
            self.target_proved = true;
        }
        Ok(())
    }

    /// Begins operational negotiation.
    fn offer(&mut self) -> LoginRequest {
        self.stage = Stage::Operational;
        let mut text = Vec::new();
        let full = self.config.target.is_some();
        self.config.offer.append(&mut text, full);
        operational(text)
    }

    fn operational(&mut self, transit: bool, pairs: &[(&str, &str)]) -> Result<Step, SessionError> {
        let mut answers = Vec::new();
        for (key, value) in pairs {
            if !self.parameters.take(&self.config.offer, key, value)? {
                text::append(&mut answers, key, "NotUnderstood");
            }
        }
        if !transit {
            return Ok(Step::Send(operational(answers)));
        }
        self.parameters.settle(&self.config.offer)?;
        Ok(Step::Done(self.parameters))
    }
}

fn security(transit: bool, text: Vec<u8>) -> LoginRequest {
    LoginRequest {
        transit,
        stages: (SECURITY, OPERATIONAL),
        text,
    }
}

fn operational(text: Vec<u8>) -> LoginRequest {
    LoginRequest {
        transit: true,
        stages: (OPERATIONAL, FULL_FEATURE),
        text,
    }
}

fn refused(response: LoginResponse, data: &[u8]) -> SessionError {
    let address = text::pairs(data).unwrap_or_default();
    let address = address.iter().find(|(key, _)| *key == "TargetAddress");
    match (response.class, address) {
        (1, Some((_, address))) => SessionError::Moved {
            address: quoted(address),
        },
        _ => SessionError::LoginRefused {
            class: response.class,
            detail: response.detail,
        },
    }
}
