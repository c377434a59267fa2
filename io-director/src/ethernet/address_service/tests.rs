//! Files of a real folder.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn files_are_read_below_the_folder_and_nowhere_else() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = outside.path().join("boot");
    std::fs::create_dir_all(root.join("pxe")).unwrap();
    std::fs::write(root.join("pxe/kernel"), "0123456789").unwrap();
    symlink("pxe/kernel", root.join("inside")).unwrap();
    symlink("../secret", root.join("outside")).unwrap();
    symlink(
        outside.path().join("boot/pxe/kernel"),
        root.join("absolute"),
    )
    .unwrap();
    symlink("loop", root.join("loop")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let folder = Folder(root);
    for name in ["pxe/kernel", "inside", "pxe/../inside"] {
        let file = folder.open(name).unwrap();
        assert_eq!(file.bytes(), 10);
        assert_eq!(file.read(8, 4).unwrap(), b"89");
        assert_eq!(file.read(10, 4).unwrap(), b"");
        assert_eq!(file.read(u64::MAX, 4).unwrap(), b"");
    }
    assert_eq!(folder.open("none").unwrap_err(), NoFile::Missing);
    for name in [
        "outside",
        "absolute",
        "../secret",
        "/etc/passwd",
        "loop",
        "pxe",
        "pipe",
        "a\0b",
    ] {
        assert_eq!(folder.open(name).unwrap_err(), NoFile::Refused, "{name}");
    }
    assert!(folder.open("").is_err());
}

#[test]
fn a_file_that_becomes_shorter_is_not_read_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, "0123456789").unwrap();
    let file = Folder(folder.path().to_owned()).open("kernel").unwrap();
    std::fs::write(&path, "0").unwrap();
    assert_eq!(file.read(8, 2), None);
}
