//! Registries on a machine's loopback: Debian's docker-registry, and one that misbehaves on demand.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    image::{Image, digest},
    machine::Machine,
};

/// Makes a self-signed certificate for 127.0.0.1, `path` with `.crt`, and its key, with `.key`.
///
/// # Panics
/// openssl is not installed.
pub fn certificate(path: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (path.with_extension("crt"), path.with_extension("key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

/// Debian's docker-registry (the distribution project's server).
#[derive(Debug)]
pub struct DockerRegistry {
    child: Child,
    /// `127.0.0.1:5000`.
    pub host: String,
}

impl DockerRegistry {
    /// Starts one on a machine's loopback and waits until it answers.
    pub async fn start(machine: &Machine) -> Self {
        Self::started(machine, Self::launch(machine.command("docker-registry"), machine.dir.path(), 5000)).await
    }

    /// The same over https, with a certificate of its own: the registry and the certificate's path.
    pub async fn start_tls(machine: &Machine) -> (Self, PathBuf) {
        Self::start_tls_with(machine, None).await
    }

    /// The same, for clients that show the certificate at `client` only.
    pub async fn start_tls_with(machine: &Machine, client: Option<&Path>) -> (Self, PathBuf) {
        let (certificate, key) = certificate(&machine.path("registry"));
        let mut command = machine.command("docker-registry");
        command.env("REGISTRY_HTTP_TLS_CERTIFICATE", &certificate).env("REGISTRY_HTTP_TLS_KEY", &key);
        if let Some(client) = client {
            command.env("REGISTRY_HTTP_TLS_CLIENTCAS", format!("[{}]", client.display()));
        }
        let registry = Self::launch(command, machine.dir.path(), 5001);
        (Self::started(machine, registry).await, certificate)
    }

    async fn started(machine: &Machine, registry: Self) -> Self {
        for _ in 0..2000 {
            if machine.in_network(|| TcpStream::connect(&registry.host)).is_ok() {
                return registry;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!(
            "docker-registry does not answer: {}",
            fs::read_to_string(machine.path("registry.log")).unwrap_or_default()
        );
    }

    /// Runs `command`, which is docker-registry, with its files in `directory`; it may not answer yet.
    pub fn launch(mut command: Command, directory: &Path, port: u16) -> Self {
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {host}}}\n",
            directory.join("registry").display()
        );
        let path = directory.join("registry.yml");
        fs::write(&path, config).expect("write the registry's configuration");
        let log = fs::File::create(directory.join("registry.log")).expect("make the registry's log");
        let child = command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(log).spawn();
        Self { child: child.expect("docker-registry is installed"), host }
    }

    /// Uploads an image; the name to pull it by.
    pub fn push(&self, machine: &Machine, repository: &str, tag: &str, image: &Image) -> String {
        self.push_by(machine, &reqwest::Client::new(), &format!("http://{}/v2/{repository}", self.host), (tag, image));
        format!("{}/{repository}:{tag}", self.host)
    }

    /// The same to a registry whose certificate nobody trusts.
    pub fn push_tls(&self, machine: &Machine, repository: &str, tag: &str, image: &Image) -> String {
        self.push_tls_as(machine, None, repository, (tag, image))
    }

    /// The same with certificate and key of the client, as PEM.
    pub fn push_tls_as(
        &self,
        machine: &Machine,
        pem: Option<&[u8]>,
        repository: &str,
        (tag, image): (&str, &Image),
    ) -> String {
        let builder = reqwest::Client::builder().tls_danger_accept_invalid_certs(true);
        let identity = pem.map(|pem| reqwest::Identity::from_pem(pem).expect("certificate and key"));
        let builder = identity.into_iter().fold(builder, reqwest::ClientBuilder::identity);
        let client = builder.build().expect("make a client");
        self.push_by(machine, &client, &format!("https://{}/v2/{repository}", self.host), (tag, image));
        format!("{}/{repository}:{tag}", self.host)
    }

    fn push_by(&self, machine: &Machine, client: &reqwest::Client, base: &str, (tag, image): (&str, &Image)) {
        machine.in_network(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
            runtime
                .block_on(upload(client, base, tag, image))
                .unwrap_or_else(|error| panic!("push to {base}: {error}"));
        });
    }
}

/// Uploads an image to the repository at `base`, a URL with `/v2/` in it.
///
/// # Errors
/// The registry does not answer, or refuses.
pub async fn upload(client: &reqwest::Client, base: &str, tag: &str, image: &Image) -> Result<(), reqwest::Error> {
    for blob in &image.blobs {
        let started = client.post(format!("{base}/blobs/uploads/")).send().await?.error_for_status()?;
        let location = started.headers()["location"].to_str().expect("a URL").to_owned();
        let joint = if location.contains('?') { '&' } else { '?' };
        client
            .put(format!("{location}{joint}digest={}", digest(blob)))
            .body(blob.clone())
            .send()
            .await?
            .error_for_status()?;
    }
    let manifest = client
        .put(format!("{base}/manifests/{tag}"))
        .header("content-type", &image.media_type)
        .body(image.manifest.clone());
    manifest.send().await?.error_for_status().map(drop)
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a `FakeRegistry` says.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// So many bytes of the body every 20 ms.
    pub pace: Option<usize>,
}

/// A request, as far as tests look at it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Start and end of what is wanted of `length` bytes, unless it is all of them.
    pub fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (start, end) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let end = if end.is_empty() { length } else { end.parse::<usize>().ok()? + 1 };
        Some((start.parse::<usize>().ok()?.min(length), end.min(length)))
    }
}

type Override = dyn Fn(&Asked) -> Option<Answer> + Send + Sync;

/// Serves images from memory, unless its `rule` has another answer.
#[derive(Debug)]
pub struct FakeRegistry {
    pub host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
}

impl FakeRegistry {
    /// Serves `image` under every repository and tag.
    pub fn start(
        machine: &Machine,
        image: Image,
        rule: impl Fn(&Asked) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = machine.in_network(|| TcpListener::bind("127.0.0.1:0")).expect("bind");
        let host = listener.local_addr().expect("bound").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (seen, counted, rule): (_, _, Arc<Override>) = (asked.clone(), connections.clone(), Arc::new(rule));
        let image = Arc::new(image);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let (seen, rule, image) = (seen.clone(), rule.clone(), image.clone());
                thread::spawn(move || while serve(&stream, &seen, &rule, &image).unwrap_or(false) {});
            }
        });
        Self { host, asked, connections }
    }

    /// How often somebody connected.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Everything that it was asked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// One request; whether the connection stays.
fn serve(stream: &TcpStream, seen: &Mutex<Vec<Asked>>, rule: &Arc<Override>, image: &Image) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => break,
        }
    }
    let mut asked = Asked { method, path, headers, body: String::new() };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut asked.body)?;
    seen.lock().expect("no panic").push(asked.clone());
    let answer = rule(&asked).unwrap_or_else(|| stored(&asked, image));
    let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let mut writer = stream;
    writer.write_all((head + "\r\n").as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(true);
    }
    let body = &answer.body[..answer.cut_after.unwrap_or(answer.body.len()).min(answer.body.len())];
    for part in body.chunks(answer.pace.unwrap_or(usize::MAX)) {
        writer.write_all(part)?;
        if answer.pace.is_some() {
            #[expect(clippy::disallowed_methods, reason = "this is what a slow server does")]
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    if answer.cut_after.is_some() {
        stream.shutdown(std::net::Shutdown::Both)?;
    }
    Ok(answer.cut_after.is_none())
}

fn stored(asked: &Asked, image: &Image) -> Answer {
    let path = asked.path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    if path.contains("/manifests/") {
        let headers = [("content-type", image.media_type.clone()), ("docker-content-digest", digest(&image.manifest))];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        return Answer { status: 200, headers, body: image.manifest.clone(), ..Answer::default() };
    }
    let Some(blob) = image.blobs.iter().find(|blob| digest(blob) == last) else {
        return Answer { status: 404, ..Answer::default() };
    };
    let Some((start, end)) = asked.range(blob.len()) else {
        return Answer { status: 200, body: blob.clone(), ..Answer::default() };
    };
    let said = format!("bytes {start}-{}/{}", end.saturating_sub(1), blob.len());
    let headers = vec![("content-range".to_owned(), said)];
    Answer { status: 206, headers, body: blob[start..end].to_vec(), ..Answer::default() }
}
