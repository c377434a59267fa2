//! The QEMU arguments that give a VM its devices.

use std::ffi::OsString;

use anyhow::{Context, Result};
use fabric_config::{HostConfig, LabConfig, PCI_SLOTS, VhbaConfig, VnicConfig};
use orimono_qemu::{
    Accelerator, Version, Vhba, Vnic, monitor_args, root_port, root_port_args, vhba_args, vnic_args,
};

use crate::agent::socket_path;
use crate::guest_link::monitor_path;

/// Arguments for `vm`: its memory as a shared memfd of `memory` (QEMU's notation, "1G"), which
/// vhost-user needs, the root ports and the monitor if devices may come and go, a monitor by which the
/// agent tells the guest of its links, then a device at a time. A VM that moves is at `host` if that is
/// where it moves to, else at its own.
///
/// # Errors
/// No VM of that name; the error lists those there are.
pub fn qemu_args(
    lab: &LabConfig,
    host: Option<&str>,
    vm: &str,
    memory: &str,
    version: Version,
    accelerator: Accelerator,
) -> Result<Vec<OsString>> {
    let found = lab
        .hosts
        .iter()
        .find_map(|host| Some((host, host.vms.iter().find(|known| known.name == vm)?)));
    let (own, vm) = found.with_context(|| {
        let known: Vec<_> = lab
            .hosts
            .iter()
            .flat_map(|host| &host.vms)
            .map(|vm| vm.name.as_str())
            .collect();
        format!("no VM is named {vm}: the lab file has {}", known.join(", "))
    })?;
    let moves_to = vm.moves_to.as_deref().filter(|to| host == Some(to));
    let host = moves_to.and_then(|to| lab.host(to)).unwrap_or(own);
    let mut arguments: Vec<OsString> = vec![
        "-object".into(),
        format!("memory-backend-memfd,id=orimono-mem,size={memory},share=on").into(),
        "-machine".into(),
        "memory-backend=orimono-mem".into(),
        "-m".into(),
        memory.into(),
    ];
    let slots = vm.vnics.iter().map(|vnic| vnic.pci_slot);
    let mut slots = slots.chain(vm.vhbas.iter().map(|vhba| vhba.pci_slot));
    if vm.qmp.is_some() || slots.any(|slot| slot.is_some()) {
        arguments.extend(root_port_args(PCI_SLOTS));
    }
    if let Some(qmp) = &vm.qmp {
        arguments.extend(monitor_args("orimono-qmp", qmp));
    }
    if vm.qmp.is_some() || !vm.vnics.is_empty() {
        arguments.extend(monitor_args("orimono-link", &monitor_path(host, &vm.name)));
    }
    for config in &vm.vnics {
        let vnic = vnic(host, config)?;
        arguments.extend(vnic_args(&vnic, version, accelerator));
    }
    for config in &vm.vhbas {
        arguments.extend(vhba_args(&vhba(host, config), version));
    }
    Ok(arguments)
}

/// A vNIC as QEMU has it.
///
/// # Errors
/// Its address is none for QEMU.
pub(crate) fn vnic(host: &HostConfig, config: &VnicConfig) -> Result<Vnic> {
    let mac = config.mac.to_string();
    let mac = mac.parse().context("address of a vNIC")?;
    let mut vnic = Vnic::new(&config.name, socket_path(host, &config.name), mac);
    vnic.queues = config.queues;
    vnic.mtu = Some(config.mtu);
    vnic.bus = config.pci_slot.map(root_port);
    Ok(vnic)
}

/// A vHBA as QEMU has it.
pub(crate) fn vhba(host: &HostConfig, config: &VhbaConfig) -> Vhba {
    let mut vhba = Vhba::new(&config.name, socket_path(host, &config.name));
    vhba.queues = config.queues;
    vhba.bus = config.pci_slot.map(root_port);
    vhba
}

/// The arguments as one line for a shell.
#[must_use]
pub fn shell_line(arguments: &[OsString]) -> String {
    let quoted = arguments.iter().map(|argument| {
        let text = argument.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_line_survives_a_shell() {
        let words = ["-object", "a b", "it's", "", "$HOME", "x=1,y=/z"];
        let line = shell_line(&words.map(OsString::from));
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {line}")])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            words.join("\n") + "\n"
        );
    }
}
