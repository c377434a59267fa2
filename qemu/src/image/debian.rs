//! A disk with Debian on it, which SeaBIOS and OVMF boot: for guests that have no other disk.
//!
//! | place on the disk | what |
//! | --- | --- |
//! | block 0 | GRUB's boot sector, in front of the partition table |
//! | partition 1, BIOS boot | the rest of GRUB for SeaBIOS |
//! | partition 2, EFI system | GRUB for OVMF, under the name of removable media |
//! | partition 3, Linux, ext4 | Debian's minimal system with systemd and its cloud kernel |
//!
//! No loop device is needed: mkfs, mtools and GRUB write into files. Where GRUB's own installer
//! would look for a device, the two block numbers that it writes are written here.
//!
//! At each start the system says [`BOOTED`] on the serial console, with what [`Booted`] reads, adds
//! a line to [`LOG_FILE`] and powers off.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use super::{ImageError, file, program_missing, tool};
use crate::{emulator::in_path, tool as host};

/// To be raised when what is made changes.
const RECIPE: u32 = 1;
const RELEASE: &str = "bookworm";
const MIRRORS: [&str; 2] = [
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://security.debian.org/debian-security bookworm-security main",
];
const SYSTEM_PACKAGES: &str = "systemd-sysv,udev,linux-image-cloud-amd64,initramfs-tools,zstd";
const LEFT_OUT: [&str; 3] = ["doc", "man", "locale"];
const ROOT_LABEL: &str = "orimono-root";

/// First word of the line that says that the system is up.
pub const BOOTED: &str = "orimono-booted";
/// The file that gets a line at each start, with the number of the start.
pub const LOG_FILE: &str = "/var/lib/orimono-starts";

const BLOCK_BYTES: u64 = 512;
const DISK_BYTES: u64 = 1 << 30;
const GRUB_BLOCK: u64 = 2048;
const GRUB_BLOCKS: u64 = 2048;
const ESP_BLOCK: u64 = GRUB_BLOCK + GRUB_BLOCKS;
const ESP_KIB: u64 = 8 << 10;
const ROOT_BLOCK: u64 = ESP_BLOCK + ESP_KIB * 2;
/// Ends before the second copy of the partition table.
const ROOT_KIB: u64 = (DISK_BYTES / BLOCK_BYTES - ROOT_BLOCK - 2048) / 2;

/// Folder of GRUB's parts.
const GRUB: &str = "/usr/lib/grub";
const GRUB_MODULES: [&str; 8] = [
    "configfile",
    "ext2",
    "linux",
    "normal",
    "part_gpt",
    "search",
    "search_label",
    "serial",
];
/// Bytes of the boot sector that are in front of the disk's signature.
const BOOT_SECTOR_BYTES: usize = 440;
/// Where the boot sector keeps the block number of the rest, 8 bytes, little endian.
const BOOT_SECTOR_NEXT: u64 = 0x5c;
/// Where the first block of the rest keeps that of the second; how many follow is there already.
const CORE_NEXT: u64 = 0x1f4;

const PROGRAMS: [(&str, &str); 6] = [
    ("mmdebstrap", "mmdebstrap"),
    ("sfdisk", "fdisk"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.fat", "dosfstools"),
    ("mcopy", "mtools"),
    ("grub-mkimage", "grub-common"),
];

/// Finds the root file system, and goes on with the file in there.
const GRUB_EARLY: &str = "search --no-floppy --label --set=root orimono-root
configfile /boot/grub/grub.cfg
";
const GRUB_CONFIG: &str = "serial --unit=0 --speed=115200
terminal_output serial
linux /vmlinuz root=LABEL=orimono-root ro console=ttyS0 quiet mitigations=off panic=-1
initrd /initrd.img
boot
";
const FSTAB: &str = "LABEL=orimono-root / ext4 errors=remount-ro 0 1\n";
const UNIT: &str = "[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/orimono-start
StandardOutput=journal+console
[Install]
WantedBy=multi-user.target
";
const START: &str = r#"#!/bin/sh
set -e
root=$(findmnt --noheadings --output SOURCE /)
disk=$(basename "$(dirname "$(realpath "/sys/class/block/${root#/dev/}")")")
serial=$(tail -c +5 "/sys/block/$disk/device/vpd_pg80")
driver=$(cat /sys/block/$disk/device/../../scsi_host/*/proc_name)
disks=$(ls /sys/block | grep -c -E '^(sd|vd|nvme)')
firmware=bios
[ -e /sys/firmware/efi ] && firmware=efi
touch LOG
starts=$(wc -l < LOG)
echo "start $((starts + 1)) by $firmware" >> LOG
sync
echo "BOOTED firmware=$firmware serial=$serial driver=$driver disks=$disks starts=$starts" > /dev/ttyS0
systemctl poweroff
"#;

/// What the system says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Booted {
    /// `bios` or `efi`.
    pub firmware: String,
    /// Serial number of the SCSI disk that the root file system is on.
    pub serial: String,
    /// The driver of its SCSI host.
    pub driver: String,
    /// Number of disks in the guest.
    pub disks: String,
    /// Earlier starts that are in [`LOG_FILE`].
    pub starts: String,
}

impl Booted {
    /// Reads the last such line of a serial console.
    #[must_use]
    pub fn find(console: &str) -> Option<Self> {
        let line = console
            .lines()
            .rev()
            .find_map(|line| Some(line.split_once(BOOTED)?.1))?;
        let field = |name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        };
        Some(Self {
            firmware: field("firmware")?,
            serial: field("serial")?,
            driver: field("driver")?,
            disks: field("disks")?,
            starts: field("starts")?,
        })
    }
}

/// The disk in `cache`, made if it is not there; `tell` gets a line before each step that takes
/// time. Whoever starts a guest copies it first.
///
/// # Errors
///
/// [`ImageError`]; [`crate::packages::SAN_BOOT_PACKAGES`] are needed, and root.
pub fn ensure(cache: &Path, tell: &mut dyn FnMut(&str)) -> Result<PathBuf, ImageError> {
    fs::create_dir_all(cache).map_err(file("create", cache))?;
    let lock_path = cache.join("debian.lock");
    let lock = File::create(&lock_path).map_err(file("create", &lock_path))?;
    lock.lock().map_err(file("lock", &lock_path))?;
    let (disk, recipe) = (cache.join("debian.img"), cache.join("debian.recipe"));
    let line = recipe_text();
    if disk.is_file() && fs::read_to_string(&recipe).is_ok_and(|known| known == line) {
        return Ok(disk);
    }
    for (program, package) in PROGRAMS {
        in_path(program).ok_or_else(|| program_missing(program, package))?;
    }
    let folder = tempfile::Builder::new()
        .prefix("debian-")
        .tempdir_in(cache)
        .map_err(file("create a folder in", cache))?;
    let root = folder.path().join("root");
    tell("making a root file system with mmdebstrap");
    bootstrap(&root)?;
    add_files(&root)?;
    tell("writing a disk with GRUB");
    let made = folder.path().join("disk");
    write_disk(&made, &root, folder.path())?;
    // The recipe goes last: what it stands beside is whole.
    super::remove_if_there(&recipe)?;
    fs::rename(&made, &disk).map_err(file("rename", &disk))?;
    fs::write(&recipe, line).map_err(file("write", &recipe))?;
    Ok(disk)
}

/// Bytes from the start of the disk to its root file system.
#[must_use]
pub const fn root_offset() -> u64 {
    ROOT_BLOCK * BLOCK_BYTES
}

fn recipe_text() -> String {
    let mirrors = MIRRORS.join("\n");
    let modules = GRUB_MODULES.join(" ");
    [
        &format!("recipe {RECIPE} {DISK_BYTES} {SYSTEM_PACKAGES} {modules}\n{mirrors}\n"),
        GRUB_EARLY,
        GRUB_CONFIG,
        FSTAB,
        UNIT,
        START,
    ]
    .concat()
}

fn bootstrap(root: &Path) -> Result<(), ImageError> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase"]);
    command.arg(format!("--include={SYSTEM_PACKAGES}"));
    for folder in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    command.arg(RELEASE).arg(root).args(MIRRORS);
    host::run(&mut command)
        .map(drop)
        .map_err(tool("make a root file system"))
}

fn add_files(root: &Path) -> Result<(), ImageError> {
    let start = START.replace("LOG", LOG_FILE).replace("BOOTED", BOOTED);
    for (path, text) in [
        ("boot/grub/grub.cfg", GRUB_CONFIG),
        ("etc/fstab", FSTAB),
        ("etc/hostname", "san\n"),
        ("etc/systemd/system/orimono-start.service", UNIT),
        ("usr/local/sbin/orimono-start", &start),
    ] {
        let path = root.join(path);
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        fs::write(&path, text).map_err(file("write", &path))?;
    }
    let script = root.join("usr/local/sbin/orimono-start");
    host::run(Command::new("chmod").arg("755").arg(&script)).map_err(tool("set a mode"))?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).map_err(file("create", &wants))?;
    let link = wants.join("orimono-start.service");
    symlink("../orimono-start.service", &link).map_err(file("create", &link))
}

fn write_disk(disk: &Path, root: &Path, folder: &Path) -> Result<(), ImageError> {
    let out = File::create_new(disk).map_err(file("create", disk))?;
    out.set_len(DISK_BYTES).map_err(file("enlarge", disk))?;
    let table = folder.join("table");
    let lines = format!(
        "label: gpt\n\
         start={GRUB_BLOCK}, size={GRUB_BLOCKS}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={ESP_BLOCK}, size={}, type=U\n\
         start={ROOT_BLOCK}, size={}, type=L\n",
        ESP_KIB * 2,
        ROOT_KIB * 2
    );
    fs::write(&table, lines).map_err(file("write", &table))?;
    let mut partition = Command::new("sh");
    partition.args([
        "-c",
        r#"PATH=$PATH:/usr/sbin:/sbin sfdisk --quiet "$1" < "$2""#,
        "sh",
    ]);
    host::run(partition.arg(disk).arg(&table)).map_err(tool("write a partition table"))?;
    let mkfs = in_path("mkfs.ext4").ok_or_else(|| program_missing("mkfs.ext4", "e2fsprogs"))?;
    let mut mkfs = Command::new(mkfs);
    mkfs.args(["-q", "-F", "-L", ROOT_LABEL, "-d"]).arg(root);
    mkfs.args(["-E", &format!("offset={}", root_offset())]);
    host::run(mkfs.arg(disk).arg(format!("{ROOT_KIB}k"))).map_err(tool("make ext4"))?;
    write_grub(&out, disk, folder)
}

fn write_grub(out: &File, disk: &Path, folder: &Path) -> Result<(), ImageError> {
    let early = folder.join("early.cfg");
    fs::write(&early, GRUB_EARLY).map_err(file("write", &early))?;
    let image = |format: &str, more: &[&str]| {
        let path = folder.join(format);
        let mut make = Command::new("grub-mkimage");
        make.args(["--format", format, "--prefix", "/boot/grub", "--config"])
            .arg(&early)
            .arg("--output")
            .arg(&path)
            .args(GRUB_MODULES)
            .args(more);
        host::run(&mut make).map_err(tool("make GRUB"))?;
        Ok::<_, ImageError>(path)
    };
    let esp = folder.join("esp");
    let mkfs = in_path("mkfs.fat").ok_or_else(|| program_missing("mkfs.fat", "dosfstools"))?;
    host::run(
        Command::new(mkfs)
            .arg("-C")
            .arg(&esp)
            .arg(ESP_KIB.to_string()),
    )
    .map_err(tool("make an EFI system partition"))?;
    let efi = image("x86_64-efi", &[])?;
    let mtools = |mut command: Command, words: &[&str]| {
        command.arg("-i").arg(&esp).args(words);
        host::run(&mut command).map_err(tool("fill the EFI system partition"))
    };
    mtools(Command::new("mmd"), &["::EFI", "::EFI/BOOT"])?;
    mtools(
        Command::new("mcopy"),
        &[&efi.to_string_lossy(), "::EFI/BOOT/BOOTX64.EFI"],
    )?;

    let read = |path: &Path| fs::read(path).map_err(file("read", path));
    let sector = read(&Path::new(GRUB).join("i386-pc/boot.img"))?;
    let core = read(&image("i386-pc", &["biosdisk"])?)?;
    if core.len() as u64 > GRUB_BLOCKS * BLOCK_BYTES {
        return Err(file("fit into its partition", Path::new("core.img"))(
            std::io::ErrorKind::FileTooLarge.into(),
        ));
    }
    let grub = GRUB_BLOCK * BLOCK_BYTES;
    for (bytes, at) in [
        (sector.get(..BOOT_SECTOR_BYTES).unwrap_or(&sector), 0),
        (&GRUB_BLOCK.to_le_bytes(), BOOT_SECTOR_NEXT),
        (&core, grub),
        (&(GRUB_BLOCK + 1).to_le_bytes(), grub + CORE_NEXT),
        (&read(&esp)?, ESP_BLOCK * BLOCK_BYTES),
    ] {
        out.write_all_at(bytes, at).map_err(file("write", disk))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_found_behind_what_others_say() {
        let console = "\u{1b}[0mGRUB\n[  1.0] x orimono-booted firmware=efi serial=lun1 \
                       driver=virtio_scsi disks=1 starts=4\r\n[ 9.9] reboot: Power down\n";
        let booted = Booted::find(console).unwrap();
        assert_eq!(
            (booted.firmware.as_str(), booted.serial.as_str()),
            ("efi", "lun1")
        );
        assert_eq!((booted.disks.as_str(), booted.starts.as_str()), ("1", "4"));
        assert_eq!(Booted::find("orimono-booted firmware=efi"), None);
        assert_eq!(Booted::find(""), None);
    }
}
