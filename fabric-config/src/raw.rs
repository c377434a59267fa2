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
    #[serde(default)]
    pub(crate) insecure: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) director: Director,
    #[serde(default)]
    pub(crate) qos_policy: Vec<QosPolicy>,
    #[serde(default)]
    pub(crate) ethernet_port: Vec<EthernetPort>,
    #[serde(default)]
    pub(crate) lag: Vec<Lag>,
    #[serde(default)]
    pub(crate) access_list: Vec<AccessList>,
    #[serde(default)]
    pub(crate) san_port: Vec<SanPort>,
    #[serde(default)]
    pub(crate) lun: Vec<Lun>,
    #[serde(default)]
    pub(crate) host: Vec<Host>,
    #[serde(default)]
    pub(crate) edge_switch: Vec<EdgeSwitch>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Tls {
    pub(crate) ca: Text,
    pub(crate) cert: Text,
    pub(crate) key: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Director {
    pub(crate) name: Text,
    #[serde(default)]
    pub(crate) listen: Vec<Text>,
    #[serde(default)]
    pub(crate) shared_luns: bool,
    #[serde(default)]
    pub(crate) backing_files: Vec<Text>,
    pub(crate) boot_dir: Option<Text>,
    pub(crate) discoverable: Option<Text>,
    pub(crate) discovery_interface: Option<Text>,
    #[serde(default)]
    pub(crate) busy_poll_us: u16,
    #[serde(default)]
    pub(crate) link: Vec<Link>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Link {
    pub(crate) host: Text,
    pub(crate) rate: Text,
    pub(crate) payload: Option<Text>,
    pub(crate) reservable: Option<Text>,
    pub(crate) protected: Option<Text>,
    #[serde(default)]
    pub(crate) oversubscribe: bool,
}

/// The keys that `[[host]]`, `[[director.link]]` and `[[edge-switch]]` share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkWords<'a> {
    pub(crate) rate: &'a Text,
    pub(crate) payload: Option<&'a Text>,
    pub(crate) reservable: Option<&'a Text>,
    pub(crate) protected: Option<&'a Text>,
    pub(crate) oversubscribe: bool,
}

impl Link {
    pub(crate) fn words(&self) -> LinkWords<'_> {
        LinkWords {
            rate: &self.rate,
            payload: self.payload.as_ref(),
            reservable: self.reservable.as_ref(),
            protected: self.protected.as_ref(),
            oversubscribe: self.oversubscribe,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct QosPolicy {
    pub(crate) kind: Text,
    pub(crate) set: Text,
    pub(crate) name: Text,
    pub(crate) cir: Option<Text>,
    #[serde(default)]
    pub(crate) cbs_bytes: u32,
    pub(crate) pir: Option<Text>,
    #[serde(default)]
    pub(crate) pbs_bytes: u32,
    #[serde(default)]
    pub(crate) weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EthernetPort {
    pub(crate) port: Text,
    pub(crate) tap: Option<Text>,
    pub(crate) interface: Option<Text>,
    pub(crate) namespace: Option<Text>,
    pub(crate) bridge: Option<Text>,
    #[serde(default)]
    pub(crate) private: bool,
    pub(crate) state: Option<Text>,
    pub(crate) offloads: Option<Spanned<bool>>,
    pub(crate) mtu: Option<Spanned<u16>>,
    pub(crate) rate: Option<Text>,
    pub(crate) reservable: Option<Text>,
    pub(crate) native_vlan: Option<Spanned<u16>>,
    pub(crate) broadcast_limit: Option<Spanned<u32>>,
    pub(crate) multicast_limit: Option<Spanned<u32>>,
    pub(crate) mirror_to: Option<Text>,
}

/// Ports that are one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Lag {
    pub(crate) lag: Text,
    pub(crate) ports: Vec<Text>,
    pub(crate) mode: Option<Text>,
    pub(crate) state: Option<Text>,
    pub(crate) reservable: Option<Text>,
    pub(crate) native_vlan: Option<Spanned<u16>>,
    pub(crate) broadcast_limit: Option<Spanned<u32>>,
    pub(crate) multicast_limit: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AccessList {
    pub(crate) name: Text,
    pub(crate) default: Text,
    #[serde(default)]
    pub(crate) rules: Vec<Spanned<AccessRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AccessRule {
    pub(crate) action: Text,
    pub(crate) source_mac: Option<Text>,
    pub(crate) destination_mac: Option<Text>,
    pub(crate) vlan: Option<Spanned<u16>>,
    pub(crate) protocol: Option<Text>,
    pub(crate) source: Option<Text>,
    pub(crate) destination: Option<Text>,
    pub(crate) source_port: Option<Text>,
    pub(crate) destination_port: Option<Text>,
    pub(crate) dscp: Option<Spanned<u8>>,
    pub(crate) priority: Option<Spanned<u8>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SanPort {
    pub(crate) port: Text,
    pub(crate) rate: Option<Text>,
    pub(crate) reservable: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Lun {
    pub(crate) name: Text,
    pub(crate) port: Text,
    pub(crate) file: Option<PathBuf>,
    pub(crate) block_device: Option<PathBuf>,
    pub(crate) qcow2: Option<PathBuf>,
    pub(crate) ram: Option<Text>,
    pub(crate) null: Option<Text>,
    pub(crate) iscsi: Option<Text>,
    pub(crate) portal: Option<Text>,
    pub(crate) target_lun: Option<Spanned<u16>>,
    pub(crate) initiator: Option<Text>,
    pub(crate) user: Option<Text>,
    pub(crate) secret_file: Option<Text>,
    pub(crate) digests: Option<Text>,
    pub(crate) sg: Option<PathBuf>,
    pub(crate) direct: Option<Spanned<bool>>,
    pub(crate) timeout: Option<Text>,
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
    pub(crate) discover: Option<Text>,
    pub(crate) discovery_interface: Option<Text>,
    pub(crate) director_name: Option<Text>,
    #[serde(default)]
    pub(crate) standby_director: Vec<Text>,
    #[serde(default)]
    pub(crate) spread: bool,
    pub(crate) path_silence_ms: Option<Spanned<u32>>,
    pub(crate) hold_down_ms: Option<u32>,
    #[serde(default)]
    pub(crate) busy_poll_us: u16,
    #[serde(default)]
    pub(crate) embedded: bool,
    pub(crate) run_dir: PathBuf,
    pub(crate) rate: Text,
    pub(crate) payload: Option<Text>,
    pub(crate) reservable: Option<Text>,
    pub(crate) protected: Option<Text>,
    #[serde(default)]
    pub(crate) oversubscribe: bool,
    #[serde(default)]
    pub(crate) vm: Vec<Vm>,
}

impl Host {
    pub(crate) fn words(&self) -> LinkWords<'_> {
        LinkWords {
            rate: &self.rate,
            payload: self.payload.as_ref(),
            reservable: self.reservable.as_ref(),
            protected: self.protected.as_ref(),
            oversubscribe: self.oversubscribe,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct EdgeSwitch {
    pub(crate) name: Text,
    #[serde(default)]
    pub(crate) listen: Vec<Text>,
    #[serde(default)]
    pub(crate) director: Vec<Text>,
    pub(crate) rate: Text,
    pub(crate) payload: Option<Text>,
    pub(crate) reservable: Option<Text>,
    #[serde(default)]
    pub(crate) oversubscribe: bool,
    #[serde(default)]
    pub(crate) hosts: Vec<Text>,
    pub(crate) ports: Option<Spanned<usize>>,
}

impl EdgeSwitch {
    pub(crate) fn words(&self) -> LinkWords<'_> {
        LinkWords {
            rate: &self.rate,
            payload: self.payload.as_ref(),
            reservable: self.reservable.as_ref(),
            protected: None,
            oversubscribe: self.oversubscribe,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Vm {
    pub(crate) name: Text,
    pub(crate) qmp: Option<PathBuf>,
    pub(crate) moves_to: Option<Text>,
    pub(crate) ingress: Option<Spanned<VmRate>>,
    pub(crate) egress: Option<Spanned<VmRate>>,
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
    pub(crate) state: Option<Text>,
    pub(crate) mac: Text,
    pub(crate) mtu: Option<Spanned<u16>>,
    pub(crate) queues: Option<Spanned<u16>>,
    pub(crate) pci_slot: Option<Spanned<u8>>,
    pub(crate) vlan: Option<Spanned<u16>>,
    pub(crate) vlans: Option<Vec<Text>>,
    pub(crate) native_vlan: Option<Spanned<u16>>,
    pub(crate) isolated: Option<Spanned<bool>>,
    #[serde(default)]
    pub(crate) addresses: Vec<Text>,
    #[serde(default)]
    pub(crate) trusted: bool,
    pub(crate) access_in: Option<Text>,
    pub(crate) access_out: Option<Text>,
    pub(crate) mirror_to: Option<Text>,
    pub(crate) broadcast_limit: Option<Spanned<u32>>,
    pub(crate) multicast_limit: Option<Spanned<u32>>,
    pub(crate) ingress: Option<Spanned<Rate>>,
    pub(crate) egress: Option<Spanned<Rate>>,
    pub(crate) addr_type: Option<Text>,
    pub(crate) ip_addr: Option<Text>,
    pub(crate) netmask: Option<Text>,
    pub(crate) gateway: Option<Text>,
    pub(crate) server_addr: Option<Text>,
    pub(crate) ip6_addr: Option<Text>,
    #[serde(default)]
    pub(crate) dns: Vec<Text>,
    pub(crate) domain: Option<Text>,
    pub(crate) host_name: Option<Text>,
    pub(crate) boot_file: Option<Text>,
    pub(crate) boot_files: Option<BootFiles>,
}

/// Boot files by the kind of client.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BootFiles {
    pub(crate) bios: Option<Text>,
    pub(crate) efi_x64: Option<Text>,
    pub(crate) efi_arm64: Option<Text>,
    pub(crate) ipxe: Option<Text>,
}

impl BootFiles {
    /// One of them.
    pub(crate) fn any(&self) -> Option<&Text> {
        let all = [&self.bios, &self.efi_x64, &self.efi_arm64, &self.ipxe];
        all.into_iter().flatten().next()
    }
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
    pub(crate) pci_slot: Option<Spanned<u8>>,
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

/// The words of one direction of a device: its own, or a policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Rate {
    pub(crate) cir: Option<Text>,
    pub(crate) cbs_bytes: Option<u32>,
    pub(crate) pir: Option<Text>,
    pub(crate) pbs_bytes: Option<u32>,
    pub(crate) weight: Option<u32>,
    pub(crate) delay_us: Option<Spanned<u32>>,
    pub(crate) iops: Option<Spanned<u32>>,
    pub(crate) iops_burst: Option<Spanned<u32>>,
    pub(crate) unprotected: Option<bool>,
    pub(crate) policy: Option<Text>,
    pub(crate) enabled: Option<Spanned<bool>>,
}

impl Rate {
    /// Whether it has words of its own.
    pub(crate) fn has_own(&self) -> bool {
        let Self {
            cir,
            cbs_bytes,
            pir,
            pbs_bytes,
            weight,
            delay_us,
            iops,
            iops_burst,
            unprotected,
            policy: _,
            enabled: _,
        } = self;
        cir.is_some()
            || cbs_bytes.is_some()
            || pir.is_some()
            || pbs_bytes.is_some()
            || weight.is_some()
            || delay_us.is_some()
            || iops.is_some()
            || iops_burst.is_some()
            || unprotected.is_some()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct VmRate {
    pub(crate) cir: Option<Text>,
    pub(crate) pir: Option<Text>,
    #[serde(default)]
    pub(crate) pbs_bytes: u32,
    #[serde(default)]
    pub(crate) weight: u32,
}
