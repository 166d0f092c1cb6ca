//! Images built on the spot: tars in memory, configs and manifests as JSON.

use std::{fs, io::Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// `sha256:...`.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
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
        Self { kind: tar::EntryType::Regular, name: "", link: "", mode: 0o644, owner: 0, content: &[] }
    }
}

/// A tar under construction.
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

    /// An entry as it is said: nothing is checked, names may be anything.
    pub fn entry(mut self, entry: &Entry<'_>) -> Self {
        let Entry { kind, name, link, mode, owner, content } = *entry;
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        // By bytes: the library refuses what hostile archives are made of.
        let fields = header.as_ustar_mut().expect("is one");
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
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
        self.entry(&Entry { kind: tar::EntryType::Link, name, link: target, mode: 0o755, ..Entry::default() })
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(&Entry { kind: tar::EntryType::Symlink, name, link: target, mode: 0o777, ..Entry::default() })
    }

    /// The finished tar.
    pub fn bytes(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}

/// Debian's busybox-static with the applets that tests use.
pub fn busybox() -> Layer {
    let path = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| fs::exists(path).unwrap_or(false));
    let program = fs::read(path.expect("busybox-static is installed")).expect("read busybox");
    let mut layer =
        Layer::new().directory("bin", 0o755).directory("etc", 0o755).directory("root", 0o700).directory("tmp", 0o1777);
    layer = layer.entry(&Entry { name: "bin/busybox", mode: 0o755, content: &program, ..Entry::default() });
    for applet in [
        "cat", "chmod", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "kill", "ls",
        "mkdir", "mkfifo", "mknod", "mount", "nc", "nslookup", "printf", "ps", "pwd", "readlink", "rm", "seq",
        "setsid", "sh", "sleep", "stat", "tail", "touch", "tr", "true", "unshare", "wc", "wget", "yes",
    ] {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n";
    let group = b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\n";
    layer.file("etc/passwd", passwd).file("etc/group", group)
}

/// Blobs and a manifest, ready to be served.
#[derive(Clone, Debug)]
pub struct Image {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: String,
    /// Digest of the config, which is the image's id.
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
    /// From tars and their compressed forms; `config` is the inner `config` object.
    pub fn new(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        Self::with_types(layers, config, OCI)
    }

    /// As Docker's older schema 2.
    pub fn docker(layers: &[(Vec<u8>, Vec<u8>)], config: &Value) -> Self {
        Self::with_types(layers, config, DOCKER)
    }

    fn with_types(layers: &[(Vec<u8>, Vec<u8>)], config: &Value, types: [&str; 3]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let describe = |media_type: &str, blob: &[u8]| json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": types[0], "config": describe(types[1], &config),
            "layers": layers.iter().map(|(_, blob)| describe(types[2], blob)).collect::<Vec<_>>(),
        });
        let id = digest(&config);
        let blobs = layers.iter().map(|(_, blob)| blob.clone()).chain([config]).collect();
        Self { blobs, manifest: manifest.to_string().into_bytes(), media_type: types[0].to_owned(), id }
    }

    /// One gzip layer and a command.
    pub fn simple(layer: Layer, command: &[&str]) -> Self {
        let tar = layer.bytes();
        let blob = gzip(&tar);
        Self::new(&[(tar, blob)], &json!({ "Cmd": command, "Env": ["FROM_IMAGE=yes"] }))
    }

    pub fn busybox() -> Self {
        Self::simple(busybox(), &["sh", "-c", "echo hello from the image; exec sleep 1000"])
    }
}
