//! Images built on the spot: tars in memory, configs and manifests as JSON.

use std::{fs, io::Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Header;

/// The digest of a blob, as `sha256:` and 64 hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("compress in memory")
}

/// One entry of a tar.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub kind: tar::EntryType,
    pub name: &'a str,
    pub link: &'a str,
    pub mode: u32,
    pub owner: u64,
    pub content: &'a [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: tar::EntryType::Regular,
            name: "",
            link: "",
            mode: 0o644,
            owner: 0,
            content: &[],
        }
    }
}

/// A layer's tar under construction. Each method appends an entry.
#[derive(Debug)]
pub struct Layer {
    tar: Vec<u8>,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    pub fn new() -> Self {
        Self { tar: Vec::new() }
    }

    /// Appends an entry without any check: names may be anything, as in a hostile image.
    pub fn entry(self, entry: &Entry<'_>) -> Self {
        self.device(entry, 0, 0)
    }

    /// As `entry`, with the numbers of a device.
    pub fn device(mut self, entry: &Entry<'_>, major: u32, minor: u32) -> Self {
        let Entry { kind, name, link, mode, owner, content } = *entry;
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        // The fields are written as bytes, because the library refuses the names that hostile
        // archives have.
        let fields = header.as_ustar_mut().expect("is one");
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        fields.set_device_major(major);
        fields.set_device_minor(minor);
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        // Content is padded to blocks of 512 bytes.
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(&Entry { kind: tar::EntryType::Directory, name, mode, ..Entry::default() })
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(&Entry { name, content, ..Entry::default() })
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(&Entry {
            kind: tar::EntryType::Link,
            name,
            link: target,
            mode: 0o755,
            ..Entry::default()
        })
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(&Entry {
            kind: tar::EntryType::Symlink,
            name,
            link: target,
            mode: 0o777,
            ..Entry::default()
        })
    }

    /// Appends a sparse file in GNU tar's format, with an empty segment at each of these offsets.
    /// The last offset is the length of the file.
    pub fn holes(mut self, name: &str, offsets: &[u64]) -> Self {
        let octal = |number: u64| {
            <[u8; 12]>::try_from(format!("{number:011o}\0").as_bytes()).expect("below 8 GiB")
        };
        let write = |segments: &mut [tar::GnuSparseHeader], offsets: &[u64]| {
            for (segment, offset) in segments.iter_mut().zip(offsets) {
                (segment.offset, segment.numbytes) = (octal(*offset), octal(0));
            }
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path(name).expect("short");
        for set in [Header::set_uid, Header::set_gid, Header::set_mtime, Header::set_size] {
            set(&mut header, 0);
        }
        header.set_mode(0o644);
        // The header has room for four segments; blocks of 21 segments follow.
        let (first, more) = offsets.split_at(offsets.len().min(4));
        let fields = header.as_gnu_mut().expect("is one");
        fields.realsize = octal(offsets.last().copied().unwrap_or_default());
        fields.isextended = [u8::from(!more.is_empty())];
        write(&mut fields.sparse, first);
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        let blocks = more.chunks(21);
        let count = blocks.len();
        for (number, offsets) in (1..).zip(blocks) {
            let mut block = tar::GnuExtSparseHeader::new();
            write(&mut block.sparse, offsets);
            block.isextended = [u8::from(number < count)];
            self.tar.extend_from_slice(block.as_bytes());
        }
        self
    }

    /// The finished tar.
    pub fn bytes(mut self) -> Vec<u8> {
        // Two blocks of zeros are the end of a tar.
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}

/// The layer that most tests run: Debian's busybox-static, with hard links for the applets that
/// tests use.
pub fn busybox() -> Layer {
    // The first on a system with a merged /usr, the second on older ones.
    let path = ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .find(|path| fs::exists(path).unwrap_or(false));
    let program = fs::read(path.expect("busybox-static is installed")).expect("read busybox");
    let mut layer = Layer::new()
        .directory("bin", 0o755)
        .directory("etc", 0o755)
        .directory("root", 0o700)
        .directory("tmp", 0o1777);
    layer = layer.entry(&Entry {
        name: "bin/busybox",
        mode: 0o755,
        content: &program,
        ..Entry::default()
    });
    for applet in [
        "cat", "chmod", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id",
        "ip", "kill", "ls", "mkdir", "mkfifo", "mknod", "mount", "nc", "nslookup", "printf", "ps",
        "pwd", "readlink", "rm", "seq", "setsid", "sh", "sleep", "stat", "tail", "touch", "tr",
        "true", "unshare", "wc", "wget", "yes",
    ] {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    // A user and a supplementary group, for tests of `runAsUserName` and the like.
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n";
    let group = b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\n";
    layer.file("etc/passwd", passwd).file("etc/group", group)
}

/// An image: its blobs and its manifest, ready to be served.
#[derive(Clone, Debug)]
pub struct Image {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: String,
    /// The digest of the config, which is the image's id in CRI.
    pub id: String,
}

const OCI: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
];
const DOCKER: [&str; 3] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

impl Image {
    /// An image of these layers, each as its tar and its compressed form. `config` is the object
    /// `config` within the image's config.
    pub fn new(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        Self::with_types(layers, config, OCI)
    }

    /// As `new`, with the media types of Docker's schema 2.
    pub fn docker(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        Self::with_types(layers, config, DOCKER)
    }

    fn with_types(layers: &[(Vec<u8>, Vec<u8>)], config: &Value, types: [&str; 3]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let describe = |media_type: &str, blob: &[u8]| {
            json!({
                "mediaType": media_type,
                "digest": digest(blob),
                "size": blob.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": types[0], "config": describe(types[1], &config),
            "layers": layers.iter().map(|(_, blob)| describe(types[2], blob)).collect::<Vec<_>>(),
        });
        let id = digest(&config);
        let blobs = layers.iter().map(|(_, blob)| blob.clone()).chain([config]).collect();
        Self {
            blobs,
            manifest: manifest.to_string().into_bytes(),
            media_type: types[0].to_owned(),
            id,
        }
    }

    /// An image of one layer, compressed by gzip, and a command.
    pub fn simple(layer: Layer, command: &[&str]) -> Self {
        let tar = layer.bytes();
        let blob = gzip(&tar);
        Self::new(&[(tar, blob)], &json!({ "Cmd": command, "Env": ["FROM_IMAGE=yes"] }))
    }

    pub fn busybox() -> Self {
        Self::simple(busybox(), &["sh", "-c", "echo hello from the image; exec sleep 1000"])
    }
}

/// An executable for x86_64, assembled by hand, that exits with the error number of `socket(family,
/// SOCK_SEQPACKET, 0)`. Where that succeeds the exit code is 253: the negative of 3, the first free
/// descriptor. `family` has 64 bits here, of which the kernel uses 32.
pub fn socket_program(family: u64) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let mut code = vec![0x48, 0xbf]; // mov rdi, family
    code.extend(family.to_le_bytes());
    code.extend([0xbe, 5, 0, 0, 0]); // mov esi, SOCK_SEQPACKET
    code.extend([0x31, 0xd2]); // xor edx, edx
    code.extend([0xb8, 41, 0, 0, 0, 0x0f, 0x05]); // mov eax, 41 (socket); syscall
    code.extend([0xf7, 0xd8, 0x89, 0xc7]); // neg eax; mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // mov eax, 60 (exit); syscall
    let headers = 64 + 56;
    let size = 64 + 56 + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Header: ET_EXEC for EM_X86_64, version 1; one program header follows, and no sections.
    elf.extend([2_u16, 62, 1, 0].into_iter().flat_map(u16::to_le_bytes));
    elf.extend([BASE + headers, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    elf.extend([0_u16, 0, 64, 56, 1, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    // Program header: PT_LOAD of the whole file, readable and executable.
    elf.extend([1_u32, 5].into_iter().flat_map(u32::to_le_bytes));
    elf.extend([0, BASE, BASE, size, size, 0x1000].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(code);
    elf
}

/// An executable for i386, assembled by hand, that exits with `kill(0, 0) + 42`. It calls the
/// kernel by the table of 32-bit system calls.
pub fn i386_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let code: &[u8] = &[
        0x31, 0xdb, // xor ebx, ebx
        0x31, 0xc9, // xor ecx, ecx
        0xb8, 37, 0, 0, 0, // mov eax, 37 (kill)
        0xcd, 0x80, // int 0x80
        0x8d, 0x58, 42, // lea ebx, [eax + 42]
        0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
        0xcd, 0x80, // int 0x80
    ];
    let header = 52_u32;
    let size = 84 + code.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Header: ET_EXEC for EM_386, version 1; one program header follows, and no sections.
    elf.extend([2_u16, 3].into_iter().flat_map(u16::to_le_bytes));
    elf.extend([1, BASE + 84, header, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    elf.extend([52_u16, 32, 1, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    // PT_LOAD of all of it, to be read and executed.
    elf.extend([1, 0, BASE, BASE, size, size, 5, 0x1000].into_iter().flat_map(u32::to_le_bytes));
    elf.extend(code);
    elf
}
