//! Images of real programs, as Debian has installed them on this machine: of each package its files,
//! of each program the libraries that it is linked with.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::image::{Entry, Image, Layer, busybox, gzip};

impl Layer {
    /// Appends files of this machine with what their links lead to, under their own paths, and the
    /// libraries of those that are programs. Directories come with them.
    ///
    /// # Panics
    /// A file cannot be read: its package is not installed (`hack/packages`).
    pub fn of_machine(self, paths: &[PathBuf]) -> Self {
        let libraries = paths.iter().flat_map(|path| libraries(path));
        let files: BTreeSet<PathBuf> = paths.iter().cloned().chain(libraries).collect();
        files.iter().fold(self, |layer, path| {
            let shown = path.display().to_string();
            let content = fs::read(path).unwrap_or_else(|error| panic!("{shown}: {error}"));
            let mode = fs::metadata(path).expect("it was just read").permissions().mode() & 0o777;
            let name = shown.trim_start_matches('/');
            layer.entry(&Entry { name, mode, content: &content, ..Entry::default() })
        })
    }
}

/// What the dynamic linker loads for a program: none for what is not linked dynamically.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("run ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the linker itself without an arrow.
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/'))?.parse().ok();
    text.lines().filter(|line| line.contains("(0x")).filter_map(path).collect()
}

fn image(layer: Layer, config: &Value) -> Image {
    let tar = layer.bytes();
    let blob = gzip(&tar);
    Image::new(&[(tar, blob)], config)
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As the image of that name: bash, with Debian's prompt, and the tools of busybox.
pub fn debian() -> Image {
    let mut layer = busybox().of_machine(&paths(&["/bin/bash", "/etc/bash.bashrc"]));
    for applet in ["cp", "find", "mv", "ping", "sed", "sort", "tar", "whoami"] {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    image(layer, &json!({ "Cmd": ["bash"], "Env": [PATH] }))
}

/// As the image of that name: its data is a volume.
pub fn redis() -> Image {
    let programs = paths(&["/usr/bin/redis-server", "/usr/bin/redis-cli"]);
    let layer = busybox()
        .of_machine(&programs)
        .directory("data", 0o755)
        // So that clients of other containers are allowed.
        .file("etc/redis.conf", b"protected-mode no\n");
    let config = json!({
        "Cmd": ["redis-server", "/etc/redis.conf"], "Env": [PATH], "WorkingDir": "/data",
        "Volumes": { "/data": {} }, "ExposedPorts": { "6379/tcp": {} },
    });
    image(layer, &config)
}

const NGINX: &str = "daemon off; user root; error_log /dev/stderr; events {}
http {
    access_log /dev/stdout;
    server { listen 80; root /usr/share/nginx/html; }
}
";

/// As the image of that name: it serves /usr/share/nginx/html on port 80.
pub fn nginx() -> Image {
    let layer = busybox()
        .of_machine(&paths(&["/usr/sbin/nginx"]))
        .directory("var/lib/nginx", 0o755)
        .directory("var/log/nginx", 0o755)
        .directory("run", 0o755)
        .file("etc/nginx/nginx.conf", NGINX.as_bytes())
        .file("usr/share/nginx/html/index.html", b"<h1>Welcome to nginx!</h1>\n");
    let config = json!({
        "Cmd": ["nginx"], "Env": [PATH], "ExposedPorts": { "80/tcp": {} },
        "StopSignal": "SIGQUIT",
    });
    image(layer, &config)
}

const REGISTRY: &str = "version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: /var/lib/registry }, delete: { enabled: true } }
http: { addr: ':5000' }
";

/// As the image of that name: the distribution project's registry.
pub fn registry() -> Image {
    let layer = busybox()
        .of_machine(&paths(&["/usr/bin/docker-registry"]))
        .file("etc/docker/registry/config.yml", REGISTRY.as_bytes());
    let config = json!({
        "Entrypoint": ["docker-registry"], "Cmd": ["serve", "/etc/docker/registry/config.yml"],
        "Env": [PATH], "Volumes": { "/var/lib/registry": {} },
        "ExposedPorts": { "5000/tcp": {} },
    });
    image(layer, &config)
}

/// The packages cowsay and fortune-mod with what Perl reads for the first, as a tar.
pub fn cowsay() -> Vec<u8> {
    let script = "do '/usr/games/cowsay'; use DynaLoader; \
                  print STDERR join \"\\n\", values %INC, @DynaLoader::dl_shared_objects";
    let output = Command::new("perl").args(["-e", script, "moo"]).output().expect("run perl");
    let read = String::from_utf8(output.stderr).expect("paths");
    let mut files: Vec<PathBuf> = read.lines().map(PathBuf::from).collect();
    files.extend(paths(&["/usr/bin/perl", "/usr/games/cowsay", "/usr/games/fortune"]));
    let fortunes = ["fortunes", "fortunes.dat", "fortunes.u8"];
    files.extend(fortunes.map(|name| Path::new("/usr/share/games/fortunes").join(name)));
    Layer::new().of_machine(&files).bytes()
}
