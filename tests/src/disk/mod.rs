//! A disk that loses power: a loop(4) device over a file that this process serves by FUSE, so that
//! every write and every flush passes through here and is remembered.
//!
//! The kernel treats it as a disk with a volatile write cache. What such a disk has after a power
//! loss is what was flushed, and an arbitrary part of what was written since; an image of that can
//! be made for any moment of the past (`image`). No module of the kernel beyond FUSE and loop is
//! needed, as would be for dm-log-writes.

mod fuse;
mod log;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};
use serde_json::Value;

pub use self::log::{Loss, Random};
use self::{
    fuse::{Operation, Request},
    log::Log,
};
use crate::machine::Machine;

/// The file system on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Ext4,
    Xfs,
    Btrfs,
}

impl Format {
    /// The program that makes it, with its arguments, and the smallest disk that it likes in MiB.
    fn make(self) -> (&'static str, &'static [&'static str], u64) {
        match self {
            // Everything is written at once, and not by a thread of the kernel later.
            Self::Ext4 => (
                "mkfs.ext4",
                &["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
                96,
            ),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"], 320),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"], 256),
        }
    }

    fn options(self) -> &'static str {
        match self {
            // The journal is written every second and not every five, so that more of what happens
            // in a short test is on the disk.
            Self::Ext4 => "loop,commit=1",
            Self::Btrfs => "loop,commit=1",
            // Two images of one disk have the same UUID, and the kernel may still be at the first.
            Self::Xfs => "loop,nouuid",
        }
    }
}

/// A disk in a machine.
#[derive(Debug)]
pub struct Disk {
    format: Format,
    /// The empty file system, before the first event.
    empty: PathBuf,
    log: Arc<Mutex<Log>>,
}

impl Disk {
    /// Makes a disk with an empty file system and mounts it at `at` in the machine's namespace.
    ///
    /// # Panics
    /// The kernel has no FUSE or no loop devices.
    pub fn mount(machine: &Machine, format: Format, at: &Path) -> Self {
        let (program, arguments, size) = format.make();
        let empty = machine.path("disk.empty");
        File::create(&empty).and_then(|file| file.set_len(size << 20)).expect("make a file");
        machine.output(program, &[arguments, &[text(&empty)]].concat());
        let content = machine.path("disk.content");
        copy(machine, &empty, &content);

        let log = Arc::new(Mutex::new(Log::default()));
        let file = machine.path("disk");
        File::create(&file).expect("make a file");
        let connection = machine.in_mounts(|| connect(&file)).expect("mount by FUSE");
        let content = File::options().read(true).write(true).open(content).expect("open");
        let served = log.clone();
        // Ends when the last mount of the disk is gone, which is after the test or with it.
        thread::spawn(move || serve(connection, &content, &served));
        let disk = Self { format, empty, log };
        disk.mount_image(machine, &file, at);
        disk
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no thread panics with it")
    }

    /// How many writes and flushes there were until now: a moment that `image` can go back to.
    pub fn moment(&self) -> usize {
        self.log().len()
    }

    /// Makes the file `path`: what is on the disk when it loses power at `moment`.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn image(&self, machine: &Machine, moment: usize, loss: Loss, path: &Path) {
        copy(machine, &self.empty, path);
        let image = File::options().write(true).open(path).expect("open the image");
        for (at, data) in self.log().remaining(moment, loss) {
            image.write_all_at(data, at).expect("write the image");
        }
    }

    /// Mounts an image of the disk at `at`. The file system recovers from its journal.
    ///
    /// # Panics
    /// The image cannot be mounted.
    pub fn mount_image(&self, machine: &Machine, image: &Path, at: &Path) {
        fs::create_dir_all(at).expect("make a directory");
        machine.output("mount", &["-o", self.format.options(), text(image), text(at)]);
    }
}

/// Whether berthd has recorded that what it pulled is on the disk.
///
/// # Panics
/// The daemon has never started.
pub fn images_are_synced(machine: &Machine) -> bool {
    let read = |name: &str| -> Option<Value> {
        serde_json::from_slice(&fs::read(machine.inside_path(name)).ok()?).ok()
    };
    let index = read("root/images/index.json");
    let layers = fs::read_dir(machine.inside_path("root/layers")).expect("layers").flatten();
    let mut records =
        layers.filter_map(|layer| fs::read_to_string(layer.path().join("layer.json")).ok());
    index.is_some()
        && index == read("root/images/index.json.synced")
        && records.all(|record| !record.contains("boot_id"))
}

/// Copies a file with its holes.
fn copy(machine: &Machine, from: &Path, to: &Path) {
    machine.output("cp", &["--sparse=always", text(from), text(to)]);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test")
}

/// Mounts a FUSE file system on the regular file `path`, and returns the kernel's end of it.
fn connect(path: &Path) -> io::Result<File> {
    let connection = File::options().read(true).write(true).open("/dev/fuse")?;
    let descriptor = connection.as_raw_fd();
    // Its root is a regular file.
    let options = format!("fd={descriptor},rootmode=100000,user_id=0,group_id=0");
    mount(Some("disk"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(connection)
}

/// Serves the file until it is unmounted.
fn serve(mut connection: File, content: &File, log: &Mutex<Log>) {
    let mut buffer = vec![0; fuse::MAX_REQUEST];
    loop {
        let length = match connection.read(&mut buffer) {
            Ok(length) => length,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // A signal, or the request was taken back before it was read.
                Some(Errno::EINTR | Errno::ENOENT) => continue,
                // ENODEV: unmounted.
                _ => return,
            },
        };
        let request = Request::parse(&buffer[..length]).expect("the kernel's requests are whole");
        let Some(reply) = respond(&request, content, log) else { continue };
        // A requester that is gone needs no reply.
        let _ = connection.write_all(&reply);
    }
}

/// Does what is asked, and returns the reply if one is expected.
fn respond(request: &Request<'_>, content: &File, log: &Mutex<Log>) -> Option<Vec<u8>> {
    let unique = request.unique;
    let reply = match &request.operation {
        Operation::Init => fuse::init(),
        Operation::GetAttributes => fuse::attributes(size(content)),
        Operation::Open => fuse::opened(),
        Operation::Read { at, size } => read(content, *at, *size),
        Operation::Write { at, data } => {
            content.write_all_at(data, *at).expect("write to the disk's file");
            log.lock().expect("no thread panics with it").write(*at, data);
            fuse::written(data.len())
        }
        Operation::Sync => {
            log.lock().expect("no thread panics with it").flush();
            Vec::new()
        }
        Operation::Close => Vec::new(),
        Operation::Notice => return None,
        Operation::Unsupported => return Some(fuse::refuse(unique, Errno::ENOSYS)),
    };
    Some(fuse::reply(unique, &reply))
}

fn size(file: &File) -> u64 {
    file.metadata().expect("the disk's file").len()
}

/// At most `size` bytes from `at` on; fewer at the end of the file.
fn read(file: &File, at: u64, wanted: usize) -> Vec<u8> {
    let left = size(file).saturating_sub(at);
    let mut data = vec![0; wanted.min(usize::try_from(left).unwrap_or(wanted))];
    file.read_exact_at(&mut data, at).expect("read from the disk's file");
    data
}
