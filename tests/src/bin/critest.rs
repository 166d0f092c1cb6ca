//! What `hack/critest` runs after the build: it makes stand-ins for the images that critest pulls,
//! serves them under their own names, and runs the suite.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{DockerRegistry, Entry, Image, Layer, Machine, gzip};
use serde_json::{Value, json};
use tar::EntryType;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Specs that are known to fail, each with its reason. The list should only shrink.
const KNOWN: &str = include_str!("../../critest-known.txt");

#[allow(clippy::print_stdout, reason = "a program for people")]
fn say(line: &str) {
    println!("{line}");
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        return Err(
            "usage: hack/critest [critest's own flags]; started without hack/critest the packages \
                are missing"
                .into(),
        );
    }
    let packages = PathBuf::from(arguments.remove(0));
    let machine = Machine::new();
    let registry = DockerRegistry::start(&machine).await;
    for host in ["registry.k8s.io", "gcr.io", "k8s.gcr.io"] {
        let directory = machine.path("certs.d").join(host);
        fs::create_dir_all(&directory)?;
        fs::write(
            directory.join("hosts.toml"),
            format!("server = \"http://{}\"\n", registry.host),
        )?;
    }
    for (name, image) in images(&packages)? {
        let (repository, tag) = name.split_once(':').ok_or("a name has a tag")?;
        registry.push(&machine, repository, tag, &image);
    }
    match std::env::var("BERTH_CRITEST_CNI").as_deref() {
        Ok("upstream") => machine.write_network(&berth_tests::upstream_network(&machine)),
        Ok(other) => {
            return Err(format!("BERTH_CRITEST_CNI={other}: only upstream is known").into());
        }
        Err(_) => {}
    }
    let daemon = machine.start().await;
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/tools/bin").canonicalize()?;
    let report = machine.path("report.json");
    let reports = if in_guest() { "../target/critest-guest" } else { "../target/critest" };
    let reports = Path::new(env!("CARGO_MANIFEST_DIR")).join(reports);
    fs::create_dir_all(&reports)?;
    let endpoint = format!("unix://{}", daemon.socket.display());
    let status = machine
        .command(tools.join("critest"))
        .args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "--report-dir"])
        .arg(&reports)
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .args(["--ginkgo.no-color", "--ginkgo.succinct"])
        .args(&arguments)
        .stdout(fs::File::create(reports.join("output.txt"))?)
        .status()?;
    fs::write(reports.join("berthd.log"), daemon.log())?;
    let text = fs::read(&report).map_err(|error| {
        format!("critest ended with {status} and no report: {error}; see {}", reports.display())
    })?;
    judge(&serde_json::from_slice(&text)?, arguments.is_empty())
}

/// Whether this is the machine of `hack/vm`, which has reports and known failures of its own.
fn in_guest() -> bool {
    std::env::var_os("BERTH_TEST_GUEST").is_some()
}

/// Prints the outcome of each spec; an error when one failed that is not known to fail, or one
/// passed that is.
fn judge(report: &Value, whole: bool) -> Outcome<()> {
    let here = |(_, reason): &(&str, &str)| in_guest() || !reason.starts_with("only in hack/vm");
    let known: BTreeMap<&str, &str> =
        KNOWN.lines().filter_map(|line| line.split_once(" -- ")).filter(here).collect();
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut wrong = Vec::new();
    let specs = report
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|suite| suite["SpecReports"].as_array())
        .flatten();
    for spec in specs.filter(|spec| spec["LeafNodeType"] == "It") {
        let hierarchy = spec["ContainerHierarchyTexts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let name: String =
            hierarchy.chain(spec["LeafNodeText"].as_str()).collect::<Vec<_>>().join(" ");
        let message = spec["Failure"]["Message"]
            .as_str()
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default();
        let state = spec["State"].as_str().unwrap_or_default();
        match (state, known.get(name.as_str())) {
            ("passed", None) => *counts.entry("passed").or_default() += 1,
            ("passed", Some(_)) => wrong.push(format!("passes, and is listed as failing: {name}")),
            // Left out by the flags of this run; the suite itself did not skip it.
            ("skipped", _) if message.is_empty() => {}
            ("skipped", _) => {
                *counts.entry("skipped").or_default() += 1;
                say(&format!("skipped  {name}: {message}"));
            }
            ("pending", _) => {}
            (_, Some(reason)) => {
                *counts.entry("known to fail").or_default() += 1;
                say(&format!("known    {name}: {reason}"));
            }
            (_, None) => {
                *counts.entry("failed").or_default() += 1;
                wrong.push(format!("failed: {name}: {message}"));
            }
        }
    }
    wrong.iter().for_each(|line| say(line));
    let totals: Vec<String> = ["passed", "failed", "skipped", "known to fail"]
        .iter()
        .map(|kind| format!("{} {kind}", counts.get(kind).unwrap_or(&0)))
        .collect();
    say(&totals.join(", "));
    if whole && counts.get("passed").is_none_or(|passed| *passed == 0) {
        return Err("nothing passed: see target/critest".into());
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{} specs are not as they should be", wrong.len()).into())
    }
}

/// All images that critest pulls, by repository and tag.
fn images(packages: &Path) -> Outcome<Vec<(String, Image)>> {
    let base = base(packages)?.bytes();
    let with = |layer: Layer, config: Value| {
        let top = layer.bytes();
        Image::new(&[(base.clone(), gzip(&base)), (top.clone(), gzip(&top))], &config)
    };
    let plain =
        |name: &str, config: Value| with(Layer::new().file("image", name.as_bytes()), config);
    let web = |port: u16| -> Outcome<Image> {
        let conf = format!(
            "user root; pid /var/run/nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log /dev/stdout; server {{ listen {port}; location / {{ return 200 \"nginx\\n\"; }} }} }}\n"
        );
        let mut layer = Layer::new()
            .directory("var", 0o755)
            .directory("var/run", 0o755)
            .directory("var/log", 0o755);
        layer = layer
            .directory("var/log/nginx", 0o755)
            .directory("var/lib", 0o755)
            .directory("var/lib/nginx", 0o755);
        layer = layer.directory("etc/nginx", 0o755).file("etc/nginx/nginx.conf", conf.as_bytes());
        layer = program(layer, &packages.join("usr/sbin/nginx"), "usr/sbin/nginx")?;
        Ok(with(layer, json!({ "Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"] })))
    };
    let sleep = json!({ "Cmd": ["/bin/sleep", "1000000"] });
    let nothing = json!({ "Cmd": ["sh"] });
    let user = |name: &str, user: &str| plain(name, json!({ "Cmd": ["sh"], "User": user }));
    let nonewprivs = fs::read(packages.join("nonewprivs"))?;
    let nonewprivs = Entry { name: "nnp", mode: 0o4755, content: &nonewprivs, ..Entry::default() };
    let served = "echo httpd serves; exec busybox httpd -f -vv -p 80 -h /www";
    let httpd = Layer::new().directory("www", 0o755).file("www/index.html", b"It works!\n");
    let groups = Layer::new()
        .file(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n",
        )
        .file(
            "etc/group",
            b"root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
        );
    let staging = |name: &str| format!("k8s-staging-cri-tools/{name}");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let tags = plain("tags", nothing.clone());
    let mut images = vec![
        ("e2e-test-images/busybox:1.29-2".to_owned(), plain("busybox", nothing.clone())),
        ("e2e-test-images/nginx:1.14-2".to_owned(), web(80)?),
        (
            "e2e-test-images/httpd:2.4.39-4".to_owned(),
            with(httpd, json!({ "Cmd": ["sh", "-c", served] })),
        ),
        (
            "e2e-test-images/nonewprivs:1.3".to_owned(),
            with(Layer::new().entry(&nonewprivs), json!({ "Cmd": ["/nnp"], "User": "1000" })),
        ),
        ("pause:3.9".to_owned(), plain("pause", sleep)),
        (staging(&format!("hostnet-nginx-{architecture}:latest")), web(12003)?),
        (
            staging("test-image-predefined-group:latest"),
            with(groups, json!({ "Cmd": ["sh"], "User": "1000" })),
        ),
        (staging("test-image-user-uid:latest"), user("uid", "1002")),
        (staging("test-image-user-username:latest"), user("username", "www-data")),
        (staging("test-image-user-uid-group:latest"), user("uid-group", "1003:1004")),
        (staging("test-image-user-username-group:latest"), user("username-group", "www-data:1004")),
    ];
    for name in ["latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"] {
        images.push((staging(&format!("test-image-{name}")), plain(name, nothing.clone())));
    }
    images.extend(
        ["1", "2", "3"].map(|tag| (staging(&format!("test-image-tags:{tag}")), tags.clone())),
    );
    Ok(images)
}

/// The base layer: Debian's busybox, whose shell runs /bin/ls instead of a built-in `ls`, and
/// programs from other packages that it lacks.
fn base(packages: &Path) -> Outcome<Layer> {
    let busybox = packages.join("bin/busybox");
    let mut layer = Layer::new();
    for directory in [
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib64",
        "lib/x86_64-linux-gnu",
        "lib/aarch64-linux-gnu",
        "proc",
        "root",
        "run",
        "sys",
    ] {
        layer = layer.directory(directory, 0o755);
    }
    for directory in [
        "usr",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/aarch64-linux-gnu",
    ] {
        layer = layer.directory(directory, 0o755);
    }
    layer = layer.directory("tmp", 0o1777);
    layer = program(layer, &busybox, "bin/busybox")?;
    let list = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8(list.stdout)?
        .lines()
        .filter(|applet| !applet.contains('[') && *applet != "busybox")
    {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    for name in ["pgrep", "ipcs", "ipcmk"] {
        layer = program(layer, &Path::new("/usr/bin").join(name), &format!("usr/bin/{name}"))?;
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
        nobody:x:65534:65534:nobody:/home:/bin/false\n";
    let group = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";
    Ok(layer.file("etc/passwd", passwd).file("etc/group", group))
}

/// Adds a program of this machine and the libraries that it loads, each at the path that it has
/// here.
fn program(mut layer: Layer, path: &Path, name: &str) -> Outcome<Layer> {
    let content = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    layer = layer.entry(&Entry { name, mode: 0o755, content: &content, ..Entry::default() });
    let loaded = Command::new("ldd").arg(path).output()?;
    for word in
        String::from_utf8(loaded.stdout)?.split_whitespace().filter(|word| word.starts_with('/'))
    {
        let content = fs::read(word)?;
        let name = word.trim_start_matches('/');
        layer = layer.entry(&Entry {
            kind: EntryType::Regular,
            name,
            mode: 0o755,
            content: &content,
            ..Entry::default()
        });
    }
    Ok(layer)
}
