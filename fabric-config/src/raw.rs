//! The file as it is written: keys and TOML types, nothing more.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::error::ConfigError;

pub(crate) type Text = Spanned<String>;

/// The line of a byte offset, from 1.
pub(crate) fn line(text: &str, offset: usize) -> usize {
    let before = text
        .as_bytes()
        .get(..offset.min(text.len()))
        .unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

pub(crate) fn parse(text: &str) -> Result<Lab, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Syntax {
        // Without a span something is missing at the top level: the whole file is the place.
        line: error.span().map_or(1, |span| line(text, span.start)),
        message: error.message().replace('\n', ", "),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Lab {
    pub(crate) director: Director,
    #[serde(default)]
    pub(crate) ethernet_port: Vec<EthernetPort>,
    #[serde(default)]
    pub(crate) lun: Vec<Lun>,
    #[serde(default)]
    pub(crate) host: Vec<Host>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Director {
    pub(crate) name: Text,
    #[serde(default)]
    pub(crate) listen: Vec<Text>,
    #[serde(default)]
    pub(crate) link: Vec<Link>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Link {
    pub(crate) host: Text,
    pub(crate) rate: Text,
    pub(crate) reservable: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EthernetPort {
    pub(crate) port: Text,
    pub(crate) tap: Text,
    pub(crate) offloads: Option<bool>,
    pub(crate) mtu: Option<Spanned<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Lun {
    pub(crate) name: Text,
    pub(crate) port: Text,
    pub(crate) file: PathBuf,
    pub(crate) block_bytes: Option<Spanned<u32>>,
    #[serde(default)]
    pub(crate) read_only: bool,
    pub(crate) serial: Option<Text>,
    pub(crate) delay_ms: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Host {
    pub(crate) name: Text,
    #[serde(default)]
    pub(crate) director: Vec<Text>,
    #[serde(default)]
    pub(crate) embedded: bool,
    pub(crate) run_dir: PathBuf,
    pub(crate) rate: Text,
    pub(crate) reservable: Option<Text>,
    #[serde(default)]
    pub(crate) vm: Vec<Vm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Vm {
    pub(crate) name: Text,
    #[serde(default)]
    pub(crate) vnic: Vec<Vnic>,
    #[serde(default)]
    pub(crate) vhba: Vec<Vhba>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Vnic {
    pub(crate) name: Text,
    pub(crate) id: Spanned<u32>,
    #[serde(default)]
    pub(crate) generation: u32,
    pub(crate) port: Text,
    pub(crate) mac: Text,
    pub(crate) mtu: Option<Spanned<u16>>,
    pub(crate) queues: Option<Spanned<u16>>,
    pub(crate) ingress: Option<Spanned<Rate>>,
    pub(crate) egress: Option<Spanned<Rate>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Vhba {
    pub(crate) name: Text,
    pub(crate) id: Spanned<u32>,
    #[serde(default)]
    pub(crate) generation: u32,
    pub(crate) port: Text,
    pub(crate) wwpn: Option<Text>,
    pub(crate) queues: Option<Spanned<u16>>,
    #[serde(default)]
    pub(crate) luns: Vec<LunMapping>,
    pub(crate) ingress: Option<Spanned<Rate>>,
    pub(crate) egress: Option<Spanned<Rate>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LunMapping {
    pub(crate) lun: Spanned<u16>,
    pub(crate) name: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Rate {
    pub(crate) cir: Option<Text>,
    #[serde(default)]
    pub(crate) cbs_bytes: u32,
    pub(crate) pir: Option<Text>,
    #[serde(default)]
    pub(crate) pbs_bytes: u32,
    #[serde(default)]
    pub(crate) weight: u32,
}
