//! From the kernel's hand-over to an open channel.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use guest_init::{MODULES_FILE, PORT_NAME};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    libc::O_NONBLOCK,
    mount::{MsFlags, mount},
};

use crate::console;

/// The port is there some milliseconds after its driver; a guest without it is useless.
const PORT_WAIT_MAX: Duration = Duration::from_secs(10);
const PORT_WAIT_STEP: Duration = Duration::from_millis(2);

/// Mounts, loads modules and starts the loopback interface. Goes on after any error and returns
/// all of them, one line each.
pub(crate) fn prepare() -> String {
    let mut notes = String::new();
    let mut note = |what: String| {
        console::say(&what);
        notes.push_str(&what);
        notes.push('\n');
    };
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        if let Err(error) = fs::create_dir_all(target) {
            note(format!("cannot create {target}: {error}"));
        }
        let options: Option<&str> = None;
        if let Err(error) = mount(Some(kind), target, Some(kind), MsFlags::empty(), options) {
            note(format!("cannot mount {target}: {error}"));
        }
    }
    match fs::read_to_string(MODULES_FILE) {
        Ok(list) => {
            for path in list
                .lines()
                .map(Path::new)
                .filter(|path| !path.as_os_str().is_empty())
            {
                if let Err(error) = load_module(path) {
                    note(format!("cannot load {}: {error}", path.display()));
                }
            }
        }
        Err(error) => note(format!("cannot read {MODULES_FILE}: {error}")),
    }
    let loopback = Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .stdin(Stdio::null())
        .status();
    match loopback {
        Ok(status) if status.success() => {}
        Ok(status) => note(format!("cannot start the loopback interface: {status}")),
        Err(error) => note(format!("cannot start the loopback interface: {error}")),
    }
    notes
}

fn load_module(path: &Path) -> io::Result<()> {
    let empty: &CStr = c"";
    match finit_module(File::open(path)?, empty, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the virtio-serial port named [`PORT_NAME`], non-blocking.
pub(crate) fn open_port() -> io::Result<File> {
    let start = Instant::now();
    loop {
        if let Some(port) = find_port() {
            // The device node may follow the name by a moment.
            match OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(O_NONBLOCK)
                .open(&port)
            {
                Ok(file) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if start.elapsed() > PORT_WAIT_MAX {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no virtio-serial port is named {PORT_NAME}"),
            ));
        }
        std::thread::sleep(PORT_WAIT_STEP);
    }
}

fn find_port() -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            return Some(Path::new("/dev").join(entry.file_name()));
        }
    }
    None
}
