//! Writes a cpio archive in the format the Linux kernel takes as an initramfs ("newc").
//!
//! An entry is a header of 110 ASCII characters (`070701` and thirteen numbers of eight
//! hexadecimal digits), the name with a final NUL, and the data; name and data are padded with
//! NULs to a multiple of four bytes of the whole archive. The entry `TRAILER!!!` ends it. See
//! Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
//!
//! Owner is always 0 and time 0, so the same content gives the same bytes.

use std::io::{self, Write};

const MAGIC: &[u8; 6] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMBOLIC_LINK: u32 = 0o120_000;

/// An archive being written. Names are relative (`etc/passwd`), a folder comes before what is
/// in it.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a folder with permission bits `mode`.
    ///
    /// # Errors
    ///
    /// Those of the writer, here and in all other methods.
    pub fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file with permission bits `mode`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for 4 GiB or more, which the format cannot say.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | mode, (0, 0), data)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`Self::directory`].
    pub fn symbolic_link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, SYMBOLIC_LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device with permission bits `mode`. Needs no privilege here; the kernel
    /// makes the node when it unpacks.
    ///
    /// # Errors
    ///
    /// As [`Self::directory`].
    pub fn character_device(
        &mut self,
        name: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | mode, (major, minor), &[])
    }

    /// Ends the archive, adds zeros up to a multiple of `block_bytes`, and returns the writer.
    ///
    /// # Errors
    ///
    /// As [`Self::directory`].
    pub fn finish(mut self, block_bytes: u64) -> io::Result<W> {
        self.inode = 0;
        self.header_and_name(TRAILER, 0, (0, 0), 0, 0)?;
        // 0 has no multiple but itself, which is never what was written.
        while block_bytes > 0 && !self.written.is_multiple_of(block_bytes) {
            self.put(&[0])?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let bytes = u32::try_from(data.len()).map_err(|_too_long| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name} is 4 GiB or more"),
            )
        })?;
        self.inode += 1;
        self.header_and_name(name, mode, device, bytes, self.inode)?;
        self.put(data)?;
        self.pad()
    }

    fn header_and_name(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        bytes: u32,
        inode: u32,
    ) -> io::Result<()> {
        let name_bytes = u32::try_from(name.len() + 1).map_err(|_too_long| {
            io::Error::new(io::ErrorKind::InvalidInput, "name is 4 GiB or more")
        })?;
        let (uid, gid, links, time, checksum) = (0, 0, 1, 0, 0);
        let (host_major, host_minor) = (0, 0);
        let fields = [
            inode, mode, uid, gid, links, time, bytes, host_major, host_minor, major, minor,
            name_bytes, checksum,
        ];
        self.put(MAGIC)?;
        for field in fields {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive
            .character_device("dev/console", 0o600, 5, 1)
            .unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        archive.symbolic_link("sh", "init").unwrap();
        archive.finish(1).unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let expected = concat!(
            "070701000000010000",
            "41ED000000000000000000000001000000000000000000000000000000000000000000000000",
            "0000000400000000dev\0\0\0",
            "070701000000020000",
            "2180000000000000000000000001000000000000000000000000000000000000000500000001",
            "0000000C00000000dev/console\0\0\0",
            "070701000000030000",
            "81ED000000000000000000000001000000000000000500000000000000000000000000000000",
            "0000000500000000init\0\0hello\0\0\0",
            "070701000000040000",
            "A1FF000000000000000000000001000000000000000400000000000000000000000000000000",
            "0000000300000000sh\0\0\0\0init",
            "070701000000000000",
            "0000000000000000000000000001000000000000000000000000000000000000000000000000",
            "0000000B00000000TRAILER!!!\0\0\0\0",
        );
        assert_eq!(String::from_utf8(sample()).unwrap(), expected);
    }

    #[test]
    fn the_end_is_padded_to_a_block() {
        let bytes = Archive::new(Vec::new()).finish(512).unwrap();
        assert_eq!(bytes.len(), 512);
        assert!(bytes[124..].iter().all(|byte| *byte == 0));
    }

    /// The oracle is cpio by other people, where there is one.
    #[test]
    fn cpio_reads_it_back() {
        let readers: [&[&str]; 2] = [&["cpio", "-tv"], &["busybox", "cpio", "-tv"]];
        for reader in readers {
            let [program, arguments @ ..] = reader else {
                continue;
            };
            if crate::emulator::in_path(program).is_none() {
                continue;
            }
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&sample()).unwrap();
            let output = child.wait_with_output().unwrap();
            let listing = String::from_utf8(output.stdout).unwrap();
            let lines: Vec<&str> = listing.lines().collect();
            assert!(output.status.success(), "{reader:?}");
            assert_eq!(lines.len(), 4, "{reader:?}: {listing}");
            assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"));
            assert!(lines[1].starts_with("crw-------") && lines[1].ends_with(" dev/console"));
            assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with(" init"));
            assert!(lines[3].starts_with("lrwxrwxrwx") && lines[3].ends_with("sh -> init"));
        }
    }
}
