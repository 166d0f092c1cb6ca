//! Plays tars against a container whose files are as hostile, and looks at the host afterwards.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
};

use berth_base::error::{Error, Kind};
use tar::{
    Archive, Builder, EntryType,
    EntryType::{Directory, Fifo, Link, Regular, Symlink},
    Header,
};
use tempfile::TempDir;

use super::{ContainerFiles, ExtractOptions, metadata::Metadata, node};

/// A container, and beside it a directory of the host that no test may change.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for directory in ["host", "container/etc", "container/dir/sub"] {
            fs::create_dir_all(machine.0.path().join(directory)).unwrap();
        }
        fs::write(machine.path("../host/secret"), "secret").unwrap();
        machine
    }

    /// A path in the container.
    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("container").join(path)
    }

    fn with<T>(&self, work: impl FnOnce(ContainerFiles<'_>) -> T) -> T {
        let root = File::open(self.path("")).unwrap();
        work(ContainerFiles::new(root.as_fd(), "web"))
    }

    fn extract(&self, path: &str, tar: &[u8]) -> Result<(), Error> {
        self.extract_with(path, tar, ExtractOptions::default())
    }

    fn extract_with(&self, path: &str, tar: &[u8], options: ExtractOptions) -> Result<(), Error> {
        let result = self.with(|files| files.extract(path, tar, options));
        let host: Vec<_> = fs::read_dir(self.0.path().join("host")).unwrap().collect();
        assert_eq!(host.len(), 1, "something was made on the host");
        let secret = self.0.path().join("host/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o7777, 0o644);
        result
    }

    fn pack(&self, path: &str) -> BTreeMap<String, (EntryType, String)> {
        let mut bytes = Vec::new();
        self.with(|files| files.pack(path, &mut bytes)).unwrap();
        unpacked(&bytes)
    }
}

/// The type of each entry, with its target or content.
fn unpacked(bytes: &[u8]) -> BTreeMap<String, (EntryType, String)> {
    let mut found = BTreeMap::new();
    for entry in Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into());
        let mut content = String::new();
        let kind = entry.header().entry_type();
        entry.read_to_string(&mut content).unwrap();
        found.insert(name, (kind, link.unwrap_or(content)));
    }
    found
}

/// An entry, whose name is written as it is, without the checks of the tar crate.
fn entry(kind: EntryType, name: &str, text: &str) -> (Header, Vec<u8>) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o640);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    let is_file = kind == EntryType::Regular;
    if is_file {
        header.set_size(text.len() as u64);
    } else {
        header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
    }
    header.set_cksum();
    (header, if is_file { text.into() } else { Vec::new() })
}

fn tar(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let (header, content) = entry(*kind, name, text);
        builder.append(&header, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_tar_becomes_files() {
    let machine = Machine::new();
    let tar = tar(&[
        (Directory, "d/", ""),
        (Regular, "d/file", "content"),
        (Symlink, "d/link", "/etc/passwd"),
        (Link, "d/hard", "d/file"),
        (Fifo, "d/fifo", ""),
        (Regular, "/made/on/the/way", "x"),
    ]);
    machine.extract("/dir", &tar).unwrap();
    assert_eq!(fs::read_to_string(machine.path("dir/d/file")).unwrap(), "content");
    assert_eq!(fs::read_to_string(machine.path("dir/made/on/the/way")).unwrap(), "x");
    let link = fs::read_link(machine.path("dir/d/link")).unwrap();
    assert_eq!(link, Path::new("/etc/passwd"));
    let [file, hard, directory, fifo] = ["file", "hard", "", "fifo"]
        .map(|name| fs::metadata(machine.path("dir/d").join(name)).unwrap());
    assert_eq!(file.ino(), hard.ino());
    assert_eq!(fifo.mode(), 0o010_640);
    for metadata in [&file, &directory, &fifo] {
        assert_eq!((metadata.mtime(), metadata.mode() & 0o7777), (1_000_000_000, 0o640));
    }
    // A directory is merged, a file replaced.
    machine
        .extract("dir/", &self::tar(&[(Directory, "d", ""), (Regular, "d/link", "new")]))
        .unwrap();
    assert_eq!(fs::read_to_string(machine.path("dir/d/link")).unwrap(), "new");
    assert_eq!(fs::read_to_string(machine.path("dir/d/file")).unwrap(), "content");
}

#[test]
fn the_extraction_point_must_be_a_directory_of_the_container() {
    let machine = Machine::new();
    fs::write(machine.path("etc/file"), "").unwrap();
    symlink("/dir/sub", machine.path("etc/link")).unwrap();
    symlink("../../../host", machine.path("etc/out")).unwrap();
    let tar = tar(&[(Regular, "x", "x")]);
    machine.extract("/etc/link", &tar).unwrap();
    assert!(machine.path("dir/sub/x").exists());
    machine.with(|files| {
        assert_eq!(files.extraction_point("/etc/link").unwrap(), Path::new("/dir/sub"));
    });
    for (path, kind, message) in [
        ("/etc/file", Kind::InvalidArgument, "extraction point is not a directory"),
        ("/none", Kind::NotFound, "Could not find the file /none in container web"),
        ("/etc/out", Kind::NotFound, "Could not find the file /etc/out in container web"),
    ] {
        let error = machine.extract(path, &tar).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (kind, message));
    }
}

#[test]
fn no_entry_leads_out_of_the_container() {
    let out = "../../../../host";
    for entries in [
        // Names.
        vec![(Regular, "../../host/secret", "evil")],
        vec![(Regular, "a/../../../host/secret", "evil")],
        // Links of the same tar.
        vec![(Symlink, "l", out), (Regular, "l/secret", "evil")],
        vec![(Symlink, "l", out), (Regular, "l", "evil")],
        vec![(Symlink, "l", "../../../../host/secret"), (Regular, "l", "evil")],
        vec![(Symlink, "l", out), (Directory, "l", ""), (Regular, "l/new", "evil")],
        vec![(Symlink, "l", "/proc/self/cwd"), (Regular, "l/new", "evil")],
        vec![(Symlink, "l", "../../../../host/secret"), (Link, "h", "l"), (Regular, "h", "evil")],
        // Hard links to what is outside.
        vec![(Link, "h", "../../host/secret"), (Regular, "h", "evil")],
        vec![(Symlink, "l", out), (Link, "h", "l/secret")],
    ] {
        let machine = Machine::new();
        // Whether it fails or lands within the container, `extract_with` looks at the host.
        let _ = machine.extract("/dir", &tar(&entries));
        let _ = machine.extract("/", &tar(&entries));
        if let Ok(linked) = fs::metadata(machine.path("dir/h")) {
            let secret = fs::metadata(machine.path("../host/secret")).unwrap();
            assert_ne!(linked.ino(), secret.ino());
        }
    }
}

#[test]
fn a_directory_that_is_a_link_of_the_container_does_not_lead_to_the_host() {
    // CVE-2018-15664: a process of the container replaces a directory by a link while the
    // daemon copies. Here it always has, and afterwards does so many times.
    let machine = Machine::new();
    let host = machine.0.path().join("host");
    fs::remove_dir(machine.path("dir/sub")).unwrap();
    symlink(&host, machine.path("dir/sub")).unwrap();
    let tar = tar(&[(Regular, "secret", "evil"), (Regular, "new", "evil")]);
    assert_eq!(machine.extract("/dir/sub", &tar).unwrap_err().kind, Kind::NotFound);
    let missing = machine.with(|files| files.pack("/dir/sub/secret", io::sink()));
    assert_eq!(missing.unwrap_err().kind, Kind::NotFound);

    let (swapped, other) = (machine.path("dir/sub"), machine.path("dir/other"));
    fs::remove_file(&swapped).unwrap();
    fs::create_dir(&swapped).unwrap();
    symlink(&host, &other).unwrap();
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            for _ in 0..2000 {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &swapped, cwd, &other, flags).unwrap();
            }
        });
        while !swapping.is_finished() {
            let _ = machine.extract("/dir/sub", &tar);
            let mut bytes = Vec::new();
            let _ = machine.with(|files| files.pack("/dir/sub/", &mut bytes));
            assert!(unpacked(&bytes).values().all(|(_, content)| content != "secret"));
        }
    });
}

#[test]
fn modes_are_not_set_through_links() {
    // The link is there when the mode of the FIFO is set, if anything goes by its name.
    let machine = Machine::new();
    let directory = File::open(machine.path("dir")).unwrap();
    symlink(machine.0.path().join("host/secret"), machine.path("dir/fifo")).unwrap();
    let header = entry(Fifo, "fifo", "").0;
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut archive = Archive::new(bytes.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let metadata = Metadata::read(&mut entry, None).unwrap();
    node::finish_other(&directory.into(), OsStr::new("fifo"), &metadata).unwrap();
    let secret = fs::metadata(machine.0.path().join("host/secret")).unwrap();
    assert_eq!(secret.mode() & 0o7777, 0o644);
    assert_ne!(secret.mtime(), 1_000_000_000);
}

#[test]
fn directories_are_kept_if_asked_for() {
    let keep = ExtractOptions { keeps_directories: true, ..ExtractOptions::default() };
    let machine = Machine::new();
    fs::write(machine.path("dir/file"), "old").unwrap();
    let file = tar(&[(Regular, "sub", "new")]);
    let directory = tar(&[(Directory, "file", "")]);
    for (tar, message) in [
        (&file, "cannot overwrite directory \"/dir/sub\" with non-directory \"/dir\""),
        (&directory, "cannot overwrite non-directory \"/dir/file\" with directory \"/dir\""),
    ] {
        let error = machine.extract_with("/dir", tar, keep).unwrap_err();
        assert_eq!(error.message, message);
    }
    fs::write(machine.path("dir/sub/below"), "").unwrap();
    machine.extract("/dir", &file).unwrap();
    machine.extract("/dir", &directory).unwrap();
    assert!(machine.path("dir/sub").is_file() && machine.path("dir/file").is_dir());
}

#[test]
fn the_owner_is_the_tars_unless_another_is_given() {
    let machine = Machine::new();
    let (mut header, content) = entry(Regular, "file", "x");
    header.set_uid(1000);
    header.set_gid(1001);
    header.set_mode(0o4755);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, content.as_slice()).unwrap();
    let tar = builder.into_inner().unwrap();
    for (owner, expected) in [(None, (1000, 1001)), (Some((5, 6)), (5, 6))] {
        let options = ExtractOptions { owner, ..ExtractOptions::default() };
        machine.extract_with("/dir", &tar, options).unwrap();
        let found = fs::metadata(machine.path("dir/file")).unwrap();
        assert_eq!((found.uid(), found.gid()), expected);
        assert_eq!(found.mode() & 0o7777, 0o4755);
    }
}

#[test]
fn what_is_no_tar_is_refused_in_dockerds_words() {
    let machine = Machine::new();
    let whole = tar(&[(Regular, "file", &"x".repeat(2000))]);
    for (bytes, message) in [
        (&b"not a tar"[..], "unexpected EOF"),
        (&[b'x'; 1024], "archive/tar: invalid tar header"),
        (&whole[..1024], "unexpected EOF"),
    ] {
        assert_eq!(machine.extract("/dir", bytes).unwrap_err().message, message);
    }
    let outside = machine.extract("/dir", &tar(&[(Regular, "../../x", "x")])).unwrap_err();
    assert_eq!(outside.message, "\"../../x\" is outside of \"/dir\"");
    machine.extract("/", &tar(&[(Regular, "../../x", "x")])).unwrap();
    assert!(machine.path("x").exists());
    machine.extract("/dir", b"").unwrap();
}

#[test]
fn a_header_without_an_end_is_refused() {
    let machine = Machine::new();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = header.as_bytes().chain(io::repeat(b'a'));
    let result = machine.with(|files| files.extract("/dir", endless, ExtractOptions::default()));
    assert!(result.unwrap_err().message.contains("a header of more than 1 MiB"));
}

#[test]
fn a_path_is_packed_under_its_last_name() {
    let machine = Machine::new();
    fs::write(machine.path("dir/file"), "content").unwrap();
    fs::hard_link(machine.path("dir/file"), machine.path("dir/sub/hard")).unwrap();
    symlink("/etc", machine.path("dir/link")).unwrap();
    let long = "n".repeat(120);
    fs::write(machine.path("dir").join(&long), "long").unwrap();
    let file = (Regular, "content".to_owned());
    let link = (Symlink, "/etc".to_owned());
    let directory = (Directory, String::new());
    let expected = BTreeMap::from([
        ("dir/".to_owned(), directory.clone()),
        ("dir/file".to_owned(), file.clone()),
        ("dir/link".to_owned(), link.clone()),
        (format!("dir/{long}"), (Regular, "long".to_owned())),
        ("dir/sub/".to_owned(), directory.clone()),
        ("dir/sub/hard".to_owned(), (Link, "dir/file".to_owned())),
    ]);
    assert_eq!(machine.pack("/dir"), expected);
    assert_eq!(machine.pack("/dir/"), expected);
    assert!(machine.pack("/dir/.").contains_key("./sub/"));
    assert!(machine.pack("/").contains_key("/dir/file"));
    let mut all = Vec::new();
    machine.with(|files| files.export(&mut all)).unwrap();
    let names: Vec<String> = unpacked(&all).into_keys().collect();
    assert_eq!(names[..3], ["dir/", "dir/file", "dir/link"]);
    assert_eq!(machine.pack("dir/file"), BTreeMap::from([("file".to_owned(), file)]));
    assert_eq!(machine.pack("/dir/link"), BTreeMap::from([("link".to_owned(), link)]));
    assert_eq!(machine.pack("/dir/link/"), BTreeMap::from([("link/".to_owned(), directory)]));
}

#[test]
fn a_sparse_file_stays_sparse() {
    let machine = Machine::new();
    let size = 256 << 20;
    let file = File::create(machine.path("dir/disk")).unwrap();
    file.set_len(size).unwrap();
    for part in 0..60 {
        file.write_all_at(b"content", part << 22).unwrap();
    }
    let mut bytes = Vec::new();
    machine.with(|files| files.pack("/dir/disk", &mut bytes)).unwrap();
    assert!(bytes.len() < 8 << 20, "{} bytes", bytes.len());
    machine.extract("/etc", &bytes).unwrap();
    let copy = fs::metadata(machine.path("etc/disk")).unwrap();
    assert_eq!(copy.len(), size);
    assert!(copy.blocks() * 512 < 16 << 20, "{} blocks", copy.blocks());
    let [original, copy] =
        ["dir/disk", "etc/disk"].map(|path| fs::read(machine.path(path)).unwrap());
    assert!(original == copy);
}
