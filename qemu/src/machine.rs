//! The machine of a guest: q35 with shared memory, devices, and QEMU's arguments for it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    accelerator::Accelerator,
    device::{Options, Vhba, Vnic, vhba_args, vnic_args},
    emulator::Qemu,
    guest::{self, Guest, GuestError, Incoming},
    image::{GuestImage, TOOLS_SERIAL},
};

/// Socket, in the guest's folder, on which QEMU serves commands to the guest's PID 1.
pub(crate) const CHANNEL_SOCKET: &str = "channel.sock";
/// Socket on which [`Guest`] waits for QEMU's own monitor connection.
pub(crate) const MONITOR_SOCKET: &str = "monitor.sock";
/// Socket on which QEMU serves a second monitor, for others (a host agent, a person).
pub const QMP_SOCKET: &str = "qmp.sock";
/// The guest's serial console.
pub const SERIAL_LOG: &str = "serial.log";

const BOOT_WITHIN_DEFAULT: Duration = Duration::from_secs(60);

/// OVMF with the variables in memory, of Debian's package `ovmf`.
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// What starts a guest that boots from a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Firmware {
    /// A PC's BIOS, as it comes with QEMU.
    SeaBios,
    /// UEFI, of Debian's package `ovmf`.
    Ovmf,
}

/// Describes a guest; [`Machine::boot`] makes one.
#[derive(Clone, Debug)]
pub struct Machine {
    qemu: Qemu,
    image: GuestImage,
    accelerator: Accelerator,
    memory_mib: u32,
    cpus: u16,
    migrates: bool,
    vnics: Vec<Vnic>,
    vhbas: Vec<Vhba>,
    root_ports: u8,
    kernel_parameters: Vec<String>,
    arguments: Vec<OsString>,
    folder: Option<PathBuf>,
    boot_within: Duration,
    firmware: Option<Firmware>,
}

impl Machine {
    /// One CPU, 512 MiB, no device but the channel to PID 1.
    #[must_use]
    pub const fn new(qemu: Qemu, image: GuestImage, accelerator: Accelerator) -> Self {
        Self {
            qemu,
            image,
            accelerator,
            memory_mib: 512,
            cpus: 1,
            migrates: false,
            vnics: Vec::new(),
            vhbas: Vec::new(),
            root_ports: 0,
            kernel_parameters: Vec::new(),
            arguments: Vec::new(),
            folder: None,
            boot_within: BOOT_WITHIN_DEFAULT,
            firmware: None,
        }
    }

    /// Memory in MiB. Half of it is the limit of the guest's root file system.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Has the machine be one that [`Guest::migrate`] may move. Both of them must be.
    #[must_use]
    pub const fn migrates(mut self) -> Self {
        self.migrates = true;
        self
    }

    /// The memory in QEMU's notation.
    ///
    /// Under TCG some moves of a busy guest with QEMU 7.2 ended in a panic of its kernel about old words on
    /// a stack, and none of eight did with memory that is no whole number of pieces of 256 KiB. Why is
    /// not known; a fault of ours is not excluded.
    fn memory(&self) -> String {
        let kib = u64::from(self.memory_mib) << 10;
        if self.migrates && self.accelerator == Accelerator::Tcg {
            format!("{}K", kib + 8)
        } else {
            format!("{kib}K")
        }
    }

    /// Number of CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u16) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a vNIC; the order is the order of the guest's interfaces.
    #[must_use]
    pub fn vnic(mut self, vnic: Vnic) -> Self {
        self.vnics.push(vnic);
        self
    }

    /// Adds a vHBA; the order is the order of the guest's SCSI hosts.
    #[must_use]
    pub fn vhba(mut self, vhba: Vhba) -> Self {
        self.vhbas.push(vhba);
        self
    }

    /// Reserves that many PCIe root ports named `rp0`, `rp1`, ... for devices plugged in later.
    #[must_use]
    pub fn root_ports(mut self, count: u8) -> Self {
        self.root_ports = count;
        self
    }

    /// Adds a word to the kernel's command line.
    #[must_use]
    pub fn kernel_parameter(mut self, word: impl Into<String>) -> Self {
        self.kernel_parameters.push(word.into());
        self
    }

    /// Adds an argument of QEMU's, behind all others.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments of QEMU's, behind all others.
    #[must_use]
    pub fn args_of(mut self, arguments: impl IntoIterator<Item = OsString>) -> Self {
        self.arguments.extend(arguments);
        self
    }

    /// Keeps sockets and logs in that folder, which must exist and be the guest's alone, instead
    /// of a temporary one. Its path must be short: a socket's path has at most 107 bytes.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Time from the start of QEMU to the ready frame of PID 1; 60 s unless set.
    #[must_use]
    pub fn boot_within(mut self, within: Duration) -> Self {
        self.boot_within = within;
        self
    }

    /// All arguments for QEMU, with sockets and logs in `folder`.
    #[must_use]
    pub fn args(&self, folder: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ]
        .map(OsString::from)
        .to_vec();
        let mut push = |name: &str, value: OsString| args.extend([OsString::from(name), value]);

        let mut machine = Options::new("q35");
        machine
            .set("accel", self.accelerator.qemu_name())
            .set("memory-backend", "mem");
        // Nobody looks at a screen or types on a keyboard; each device less boots faster.
        machine
            .set("usb", "off")
            .set("vmport", "off")
            .set("smbus", "off")
            .set("sata", "off");
        push("-machine", machine.finish());
        let cpu = match self.accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        };
        push("-cpu", cpu.into());
        push("-smp", self.cpus.to_string().into());
        push("-m", self.memory().into());
        let mut memory = Options::new("memory-backend-memfd");
        memory
            .set("id", "mem")
            .set("size", self.memory())
            .set("share", "on");
        push("-object", memory.finish());

        match self.firmware {
            None => {
                push("-kernel", self.image.kernel().into());
                push("-initrd", self.image.initramfs().into());
                push("-append", self.kernel_command_line().into());
            }
            Some(Firmware::SeaBios) => {}
            Some(Firmware::Ovmf) => push("-bios", OVMF.into()),
        }

        let mut serial = Options::new("file");
        serial
            .set("id", "serial")
            .set_path("path", &folder.join(SERIAL_LOG));
        push("-chardev", serial.finish());
        push("-serial", "chardev:serial".into());

        let mut monitor = Options::new("socket");
        monitor
            .set("id", "monitor")
            .set_path("path", &folder.join(MONITOR_SOCKET));
        push("-chardev", monitor.finish());
        push("-mon", "chardev=monitor,mode=control".into());
        let mut qmp = Options::new("socket");
        qmp.set("id", "qmp")
            .set_path("path", &folder.join(QMP_SOCKET));
        qmp.set("server", "on").set("wait", "off");
        push("-chardev", qmp.finish());
        push("-mon", "chardev=qmp,mode=control".into());

        push("-device", "virtio-rng-pci,id=rng0".into());
        if self.firmware.is_none() {
            let mut channel = Options::new("socket");
            channel
                .set("id", "channel")
                .set_path("path", &folder.join(CHANNEL_SOCKET));
            channel.set("server", "on").set("wait", "off");
            push("-chardev", channel.finish());
            push("-device", "virtio-serial-pci,id=serial0,max_ports=2".into());
            let mut port = Options::new("virtserialport");
            port.set("chardev", "channel")
                .set("name", guest_init::PORT_NAME);
            push("-device", port.finish());

            let mut tools = Options::new("driver=file");
            tools
                .set("node-name", "tools")
                .set_path("filename", self.image.tools());
            tools.set("read-only", "on");
            push("-blockdev", tools.finish());
            let mut disk = Options::new("virtio-blk-pci");
            disk.set("id", "tools0")
                .set("drive", "tools")
                .set("serial", TOOLS_SERIAL);
            push("-device", disk.finish());
        }

        for index in 0..self.root_ports {
            let mut root_port = Options::new("pcie-root-port");
            root_port.set("id", format!("rp{index}"));
            root_port.set("chassis", (u16::from(index) + 1).to_string());
            push("-device", root_port.finish());
        }
        for vnic in &self.vnics {
            args.extend(vnic_args(vnic, self.qemu.version(), self.accelerator));
        }
        for vhba in &self.vhbas {
            args.extend(vhba_args(vhba, self.qemu.version()));
        }
        args.extend(self.arguments.iter().cloned());
        args
    }

    /// `panic=-1` with QEMU's `-no-reboot` turns a kernel panic into QEMU's end.
    fn kernel_command_line(&self) -> String {
        let mut words: Vec<&str> = vec![
            "console=ttyS0",
            "quiet",
            "panic=-1",
            "mitigations=off",
            "net.ifnames=0",
            "random.trust_cpu=on",
            "audit=0",
            "cryptomgr.notests",
        ];
        if self.accelerator == Accelerator::Tcg {
            // The checks of clock sources fire when a loaded host delays an emulated CPU.
            words.extend(["tsc=reliable", "no_timer_check", "nowatchdog"]);
        }
        words.extend(self.kernel_parameters.iter().map(String::as_str));
        words.join(" ")
    }

    /// Starts QEMU and waits until PID 1 takes commands.
    ///
    /// # Errors
    ///
    /// [`GuestError`]; nothing is left running then. When the guest did not get ready, the error
    /// shows the last lines of QEMU and of the serial console.
    pub fn boot(self) -> Result<Guest, GuestError> {
        Guest::boot(&self)
    }

    /// Starts QEMU without a guest, to take that of another by [`Guest::migrate`]. The machine must be
    /// like the other one but for the sockets of its devices.
    ///
    /// # Errors
    ///
    /// [`GuestError`], as [`Self::boot`].
    pub fn wait_for_guest(self) -> Result<Incoming, GuestError> {
        Incoming::start(&self.arg("-incoming").arg("defer"))
    }

    /// Starts a guest without our kernel, PID 1 and tools disk: `firmware` boots it from a device
    /// that has a place in its order ([`Vhba::boot_index`]). Waits until the guest powers off, and
    /// returns its serial console; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    ///
    /// [`GuestError::Setup`]; [`GuestError::NotReady`], with the last lines of QEMU and of the
    /// serial console, when the guest has not powered off after `within`, and is killed then.
    pub fn run_from_disk(
        mut self,
        firmware: Firmware,
        within: Duration,
    ) -> Result<String, GuestError> {
        self.firmware = Some(firmware);
        guest::run_to_power_off(&self, within)
    }

    pub(crate) const fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    pub(crate) fn folder_path(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    pub(crate) const fn boot_time_max(&self) -> Duration {
        self.boot_within
    }
}
