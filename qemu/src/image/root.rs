//! The guest's files: what is where, and the archives they are written to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ImageError, TOOLS_SERIAL, file, kernel::Kernel, program_missing, replace, tool};
use crate::{cpio::Archive, elf, emulator::in_path, kernel_modules::ModuleList, tool as host};

/// Loaded at boot, with what they need. One that is built in is skipped.
const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "virtio_scsi",
    "sd_mod",
    "sg",
    "virtio_rng",
];
/// Only in the image, for `modprobe`.
const MODULES_ON_DEMAND: [&str; 6] = [
    "8021q",
    "bonding",
    "bridge",
    "tun",
    "crc32_generic",
    "virtio_blk",
];
/// In the tools archive: `modprobe` finds them once a program of it was called.
const MODULES_LATE: [&str; 2] = ["xfs", "btrfs"];
/// Where the programs of the tools archive are. At their usual place is [`WRAPPER`].
const TOOLS_FOLDER: &str = "/usr/libexec/orimono";
/// Unpacks the tools archive once, then is the program it was called as. The lock is for those
/// who call at the same time; 125 is what env(1) and timeout(1) say when they fail themselves.
const WRAPPER: &str = r#"#!/bin/sh
flock /run/tools.lock sh -c '
    [ -e /run/tools ] && exit
    modprobe virtio_blk || exit
    for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" = SERIAL ] && break
    done
    cd / && cpio -idmu 2>/dev/null < /dev/${disk##*/} && : > /run/tools
' || { echo "cannot unpack the tools archive" >&2; exit 125; }
exec FOLDER/${0##*/} "$@"
"#;
/// The archive is also a disk.
const SECTOR_BYTES: u64 = 512;
/// Debian has one `/usr`; the old folders are links into it.
const USR_LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
const FOLDERS: [&str; 11] = [
    "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var",
];
const TEXTS: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// What is at one path of the guest's root.
#[derive(Debug)]
enum Node {
    Folder,
    Console,
    Link(String),
    Text { text: String, mode: u32 },
    Copy { from: PathBuf, mode: u32 },
}

/// The guest's root file system, before it is written. Sorted, so folders come first.
#[derive(Debug, Default)]
pub(super) struct Root {
    nodes: BTreeMap<String, Node>,
    /// Files of the host that were copied.
    pub(super) inputs: BTreeSet<PathBuf>,
}

impl Root {
    fn add(&mut self, path: &str, node: Node) {
        let path = inside(path);
        for (end, _slash) in path.match_indices('/') {
            if let Some(parent) = path.get(..end) {
                self.nodes.entry(parent.to_owned()).or_insert(Node::Folder);
            }
        }
        if let Node::Copy { from, .. } = &node {
            self.inputs.insert(from.clone());
        }
        self.nodes.insert(path, node);
    }

    /// Folders, links and texts that are always there, and PID 1.
    pub(super) fn add_init(&mut self, init: &Path) {
        for folder in FOLDERS {
            self.add(folder, Node::Folder);
        }
        for link in USR_LINKS {
            self.add(&format!("usr/{link}"), Node::Folder);
            self.nodes
                .insert(link.to_owned(), Node::Link(format!("usr/{link}")));
        }
        for (path, text) in TEXTS {
            self.add(path, text_file(text));
        }
        // Not through `add`: its sources are the inputs, the program is only made when they changed.
        self.nodes.insert(
            "init".to_owned(),
            Node::Copy {
                from: init.to_owned(),
                mode: 0o755,
            },
        );
        // Before PID 1 mounts anything, the kernel opens this for it.
        self.nodes.insert("dev/console".to_owned(), Node::Console);
    }

    /// Kernel modules, and the list of those PID 1 loads: the usual ones and `more`.
    pub(super) fn add_modules(&mut self, kernel: &Kernel, more: &[&str]) -> Result<(), ImageError> {
        let list = kernel_modules(kernel)?;
        let folder = format!("/lib/modules/{}", kernel.version);
        let boot = list.load_order(&[&MODULES, more].concat())?;
        for module in boot.iter().chain(&list.load_order(&MODULES_ON_DEMAND)?) {
            let from = kernel.modules.join(module);
            self.add(
                &format!("{folder}/{module}"),
                Node::Copy { from, mode: 0o644 },
            );
        }
        let order: String = boot
            .iter()
            .map(|module| format!("{folder}/{module}\n"))
            .collect();
        self.add(guest_init::MODULES_FILE, text_file(order));
        let dep = module_file(kernel, "modules.dep")?;
        self.add(&format!("{folder}/modules.dep"), text_file(dep));
        Ok(())
    }

    /// Adds kernel modules that `root` has not.
    pub(super) fn add_late_modules(
        &mut self,
        kernel: &Kernel,
        root: &Self,
    ) -> Result<(), ImageError> {
        let folder = format!("/lib/modules/{}", kernel.version);
        for module in kernel_modules(kernel)?.load_order(&MODULES_LATE)? {
            let path = format!("{folder}/{module}");
            if !root.nodes.contains_key(&inside(&path)) {
                let from = kernel.modules.join(module);
                self.add(&path, Node::Copy { from, mode: 0o644 });
            }
        }
        Ok(())
    }

    /// Programs, their shared libraries and busybox's applets.
    pub(super) fn add_programs(&mut self, programs: &BTreeSet<PathBuf>) -> Result<(), ImageError> {
        for path in programs.iter().chain(&shared_libraries(programs)?) {
            let mode = 0o755;
            self.add(
                &path.to_string_lossy(),
                Node::Copy {
                    from: path.clone(),
                    mode,
                },
            );
        }
        // Debian's static busybox prefers its own applets to programs in PATH when it is the
        // shell, so it is not: `ip` would be the wrong one.
        self.add("usr/bin/sh", Node::Link("dash".to_owned()));
        let busybox =
            in_path("busybox").ok_or_else(|| program_missing("busybox", "busybox-static"))?;
        let applets = host::run(Command::new(&busybox).arg("--list"))
            .map_err(tool("list the programs of busybox"))?;
        self.add(
            "usr/bin/busybox",
            Node::Copy {
                from: busybox,
                mode: 0o755,
            },
        );
        for applet in String::from_utf8_lossy(&applets).lines() {
            let (user, administrator) = (format!("usr/bin/{applet}"), format!("usr/sbin/{applet}"));
            // The real program is the better one.
            if !self.nodes.contains_key(&user) && !self.nodes.contains_key(&administrator) {
                self.add(&user, Node::Link("busybox".to_owned()));
            }
        }
        Ok(())
    }

    /// Puts a wrapper at the place of each of these programs and returns the files of the tools
    /// archive: the programs, and the libraries that nothing here needs.
    pub(super) fn split_off(&mut self, programs: &BTreeSet<PathBuf>) -> Result<Self, ImageError> {
        let mut tools = Self::default();
        for path in shared_libraries(programs)? {
            if !self.nodes.contains_key(&inside(&path.to_string_lossy())) {
                let node = Node::Copy {
                    from: path.clone(),
                    mode: 0o755,
                };
                tools.add(&path.to_string_lossy(), node);
            }
        }
        let text = WRAPPER
            .replace("FOLDER", TOOLS_FOLDER)
            .replace("SERIAL", TOOLS_SERIAL);
        for path in programs {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let node = Node::Copy {
                from: path.clone(),
                mode: 0o755,
            };
            tools.add(&format!("{TOOLS_FOLDER}/{name}"), node);
            self.add(
                &path.to_string_lossy(),
                Node::Text {
                    text: text.clone(),
                    mode: 0o755,
                },
            );
        }
        Ok(tools)
    }

    /// Writes the archive, padded with zeros to whole disk sectors.
    pub(super) fn write(&self, path: &Path) -> Result<(), ImageError> {
        let mut contents = BTreeMap::new();
        for node in self.nodes.values() {
            if let Node::Copy { from, .. } = node {
                contents.insert(from, fs::read(from).map_err(file("read", from))?);
            }
        }
        replace(path, |out| {
            let mut archive = Archive::new(out);
            for (name, node) in &self.nodes {
                match node {
                    Node::Folder => archive.directory(name, 0o755)?,
                    Node::Console => archive.character_device(name, 0o600, 5, 1)?,
                    Node::Link(target) => archive.symbolic_link(name, target)?,
                    Node::Text { text, mode } => archive.file(name, *mode, text.as_bytes())?,
                    Node::Copy { from, mode } => {
                        let data = contents.get(from).map(Vec::as_slice).unwrap_or_default();
                        archive.file(name, *mode, data)?;
                    }
                }
            }
            archive.finish(SECTOR_BYTES).map(drop)
        })
    }
}

fn module_file(kernel: &Kernel, name: &str) -> Result<String, ImageError> {
    let path = kernel.modules.join(name);
    fs::read_to_string(&path).map_err(file("read", &path))
}

fn kernel_modules(kernel: &Kernel) -> Result<ModuleList, ImageError> {
    let dep = module_file(kernel, "modules.dep")?;
    let builtin = module_file(kernel, "modules.builtin")?;
    Ok(ModuleList::parse(&dep, &builtin))
}

fn text_file(text: impl Into<String>) -> Node {
    Node::Text {
        text: text.into(),
        mode: 0o644,
    }
}

/// The path inside the archive of an absolute path of the host, with the old folders resolved.
fn inside(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if USR_LINKS.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

fn shared_libraries(programs: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>, ImageError> {
    let mut dynamic = Vec::new();
    for path in programs {
        let bytes = fs::read(path).map_err(file("read", path))?;
        // ldd fails for static programs, and sg3-utils has a script or two. A library looks like a
        // static program: it names no dynamic linker.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_static = elf::is_static_program(&bytes) && !name.contains(".so");
        if bytes.starts_with(b"\x7fELF") && !is_static {
            dynamic.push(path);
        }
    }
    let answer = host::run(Command::new("ldd").args(dynamic)).map_err(tool("list libraries"))?;
    Ok(libraries_of_ldd(&String::from_utf8_lossy(&answer)))
}

/// The files named in what ldd(1) prints: `name => /path (address)`, or `/path (address)` for the
/// dynamic linker.
fn libraries_of_ldd(text: &str) -> BTreeSet<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let line = line
                .trim()
                .split_once("=> ")
                .map_or(line.trim(), |(_name, path)| path);
            line.split_once(" (").map(|(path, _address)| path)
        })
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_linker() {
        let text = "/usr/bin/fio:\n\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries_of_ldd(text), expected.map(PathBuf::from).into());
    }

    #[test]
    fn parents_exist_and_old_folders_are_links_into_usr() {
        let mut root = Root::default();
        root.add("/lib/x86_64-linux-gnu/libc.so.6", text_file(""));
        let names: Vec<&str> = root.nodes.keys().map(String::as_str).collect();
        let expected = [
            "usr",
            "usr/lib",
            "usr/lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu/libc.so.6",
        ];
        assert_eq!(names, expected);
    }
}
