//! Ports of modules, and what a device can end at.

use std::fmt;
use std::str::FromStr;

use controller_api::objects::Iocard;
use fabric_config::PortName;

use super::{Model, Problem};

/// LAGs of one module at most, as in the original.
const LAGS_MAX: u8 = 5;

/// `slot/port`, or `director:slot/port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortRef {
    pub(crate) director: Option<String>,
    pub(crate) port: PortName,
}

impl FromStr for PortRef {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (director, port) = split(text);
        let port = port
            .parse()
            .map_err(|error: fabric_config::AddressError| Problem::from_text(&error))?;
        Ok(Self {
            director: director.map(str::to_owned),
            port,
        })
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.director {
            Some(director) => write!(f, "{director}:{}", self.port),
            None => self.port.fmt(f),
        }
    }
}

/// `director:rest` as its two parts.
pub(crate) fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((director, rest)) => (Some(director), rest),
        None => (None, text),
    }
}

/// A slot, 1 to 15.
pub(crate) fn slot(text: &str) -> Result<u8, Problem> {
    let port: PortName = format!("{text}/1").parse().map_err(|_same_text| {
        Problem::invalid(
            format_args!("{text:?} is no slot"),
            "use a slot from 1 to 15",
        )
    })?;
    Ok(port.slot())
}

/// `slot.number` of a LAG.
pub(crate) fn lag(text: &str) -> Result<(u8, u8), Problem> {
    let parse = || {
        let (at, number) = text.split_once('.')?;
        let number: u8 = number.parse().ok()?;
        let valid = (1..=LAGS_MAX).contains(&number);
        valid.then_some((slot(at).ok()?, number))
    };
    parse().ok_or_else(|| {
        Problem::invalid(
            format_args!("{text:?} is no LAG"),
            format_args!("write it like 10.1: slot 1 to 15, number 1 to {LAGS_MAX}"),
        )
    })
}

impl Model {
    /// The director that is meant when none is named: the first.
    pub(crate) fn first_director(&self) -> Option<&str> {
        self.directors.keys().next().map(String::as_str)
    }

    /// The module in a slot, if there is one.
    pub(crate) fn iocard(&self, director: Option<&str>, slot: u8) -> Option<&Iocard> {
        let first = self.first_director();
        let director = director.or(first);
        let by_director =
            director.and_then(|director| self.iocards.get(&format!("{director}:{slot}")));
        by_director
            .or_else(|| {
                let first = director == first;
                first.then(|| self.iocards.get(&slot.to_string())).flatten()
            })
            .map(|card| &**card)
    }

    /// Refuses a port that the module in its slot does not have. A slot without a module is no mistake:
    /// it may come.
    pub(crate) fn check_port(&self, port: &PortRef, want: PortUse) -> Result<(), Problem> {
        let Some(card) = self.iocard(port.director.as_deref(), port.port.slot()) else {
            return Ok(());
        };
        let kind = card.kind;
        if port.port.port() > kind.ports() {
            return Err(Problem::invalid(
                format_args!(
                    "module {} is {} and has no port {port}",
                    port.port.slot(),
                    kind.text()
                ),
                format_args!("use ports {0}/1 to {0}/{1}", port.port.slot(), kind.ports()),
            ));
        }
        let fits = match want {
            PortUse::Ethernet => kind.is_ethernet(),
            PortUse::San => kind.is_san(),
        };
        if fits {
            return Ok(());
        }
        Err(Problem::invalid(
            format_args!("port {port} is of a module {}", kind.text()),
            format_args!("use a port of {want}"),
        ))
    }
}

/// What a port is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortUse {
    Ethernet,
    San,
}

impl fmt::Display for PortUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "an Ethernet module",
            Self::San => "a SAN module",
        })
    }
}
