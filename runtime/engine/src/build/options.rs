//! What a request to build asks for: the query of `POST /build` and its header with credentials.

use std::collections::BTreeMap;

use berth_image::{AuthConfig, normalize};
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use crate::{
    api::{
        host_config::{HostConfig, LogConfig},
        registry::all_auth,
    },
    container::platform::Platform,
    http::error::{Failure, Result},
    image_name,
    routes::query::Query,
};

/// The key of Docker Hub in a client's credentials.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug)]
pub(crate) struct Options {
    /// The path of the Dockerfile in the context.
    pub dockerfile: String,
    /// Full names, each once.
    pub tags: Vec<String>,
    /// A URL in the place of the request's body; empty without.
    pub remote: String,
    pub is_quiet: bool,
    pub uses_cache: bool,
    /// Whether the container of a step goes when that has succeeded.
    pub removes: bool,
    /// Whether it goes in any case.
    pub removes_always: bool,
    /// Whether images are pulled that are here.
    pub pulls: bool,
    /// `None` for one that the client was told of and that is not set there.
    pub args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    /// The last stage that is built; empty for the last one.
    pub target: String,
    pub platform: Option<Platform>,
    /// Of the containers in which steps run.
    pub host: HostConfig,
    /// Images that a step may be taken from, whoever has built them.
    pub cache_from: Vec<String>,
    /// By which `POST /build/cancel` knows it.
    pub id: String,
    credentials: BTreeMap<String, AuthConfig>,
}

impl Options {
    /// # Errors
    /// 400 for what cannot be read, and for what this builder does not have, in dockerd's words where
    /// it has some.
    pub(crate) fn parse(query: &Query, headers: &HeaderMap) -> Result<Self> {
        check_version(query.get("version"))?;
        if query.flag("squash") {
            let text = "squash is only supported with experimental mode";
            return Err(Failure::bad_request(text));
        }
        if query.all("securityopt").next().is_some() {
            let text = "security options are not supported on linux";
            return Err(Failure::bad_request(text));
        }
        let removes_always = query.flag("forcerm");
        Ok(Self {
            dockerfile: match query.get("dockerfile") {
                "" => "Dockerfile".to_owned(),
                path => path.to_owned(),
            },
            tags: tags(query.all("t"))?,
            remote: query.get("remote").to_owned(),
            is_quiet: query.flag("q"),
            uses_cache: !query.flag("nocache"),
            removes: removes_always || query.get("rm").is_empty() || query.flag("rm"),
            removes_always,
            pulls: query.flag("pull"),
            args: document(query, "buildargs", "error reading build args")?,
            labels: document(query, "labels", "error reading labels")?,
            target: query.get("target").to_owned(),
            platform: Platform::parse(query.get("platform"))?,
            host: host(query)?,
            cache_from: document(query, "cachefrom", "error reading cache-from")?,
            id: query.get("buildid").to_owned(),
            credentials: all_auth(headers),
        })
    }

    /// The credentials for the registry of an image.
    pub(crate) fn auth(&self, full_name: &str) -> AuthConfig {
        let registry = full_name.split('/').next().unwrap_or_default();
        let key = if registry == "docker.io" { HUB } else { registry };
        self.credentials.get(key).cloned().unwrap_or_default()
    }
}

fn check_version(version: &str) -> Result<()> {
    match version {
        "" | "1" => Ok(()),
        "2" => Err(Failure::bad_request(
            "this daemon has no BuildKit: build with DOCKER_BUILDKIT=0, or with a builder of buildx' \
             own",
        )),
        other => Err(Failure::bad_request(format!("invalid version \"{other}\""))),
    }
}

fn tags<'a>(given: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let mut tags: Vec<String> = Vec::new();
    for tag in given.filter(|tag| !tag.is_empty()) {
        // dockerd has no status for these.
        let refused = |message: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        let full = normalize(tag).ok_or_else(|| refused(image_name::invalid(tag).message))?;
        if full.contains('@') {
            return Err(refused("build tag cannot contain a digest".to_owned()));
        }
        if !tags.contains(&full) {
            tags.push(full);
        }
    }
    Ok(tags)
}

/// A value of the query that is JSON; `null` and nothing are the default.
fn document<T: DeserializeOwned + Default>(query: &Query, name: &str, during: &str) -> Result<T> {
    let text = query.get(name);
    let parsed = match text {
        "" => Ok(None),
        text => serde_json::from_str(text),
    };
    let parsed = parsed.map_err(|error| Failure::bad_request(format!("{during}: {error}")))?;
    Ok(parsed.unwrap_or_default())
}

/// What the containers of steps get of the machine. They have no log: the client reads them.
fn host(query: &Query) -> Result<HostConfig> {
    let number = |name: &str| query.get(name).parse::<i64>().unwrap_or_default();
    let extra_hosts: Vec<String> = query.all("extrahosts").map(str::to_owned).collect();
    let shm_size = match query.get("shmsize") {
        "" => 0,
        text => text.parse().map_err(|_| {
            Failure::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax"))
        })?,
    };
    Ok(HostConfig {
        log_config: LogConfig { r#type: "none".to_owned(), config: BTreeMap::new() },
        network_mode: query.get("networkmode").to_owned(),
        cgroup_parent: query.get("cgroupparent").to_owned(),
        cpu_shares: number("cpushares"),
        cpu_period: number("cpuperiod"),
        cpu_quota: number("cpuquota"),
        cpuset_cpus: query.get("cpusetcpus").to_owned(),
        cpuset_mems: query.get("cpusetmems").to_owned(),
        memory: number("memory"),
        memory_swap: number("memswap"),
        ulimits: document(query, "ulimits", "error reading ulimit settings")?,
        shm_size,
        extra_hosts: Some(extra_hosts).filter(|hosts| !hosts.is_empty()),
        isolation: query.get("isolation").to_owned(),
        ..HostConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_URL_SAFE, Engine as _};
    use http::HeaderValue;

    use super::*;

    fn parse(query: &str) -> Result<Options> {
        Options::parse(&Query::parse(query), &HeaderMap::new())
    }

    #[test]
    fn what_is_not_said_has_dockers_defaults() {
        let options = parse("").unwrap();
        assert_eq!(options.dockerfile, "Dockerfile");
        assert!(options.removes && !options.removes_always && options.uses_cache);
        assert_eq!(options.host.log_config.r#type, "none");
        let options = parse("rm=0&nocache=1&t=a&t=b:1&t=a:latest&buildargs={\"A\":null}").unwrap();
        assert!(!options.removes && !options.uses_cache);
        assert_eq!(options.tags, ["docker.io/library/a:latest", "docker.io/library/b:1"]);
        assert_eq!(options.args["A"], None);
        assert!(parse("rm=0&forcerm=1").unwrap().removes);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (query, part) in [
            ("version=2", "no BuildKit"),
            ("version=3", "invalid version \"3\""),
            ("squash=1", "squash is only supported"),
            ("securityopt=x", "security options are not supported"),
            ("buildargs=[1]", "error reading build args: "),
            ("labels=x", "error reading labels: "),
            ("ulimits=x", "error reading ulimit settings: "),
            ("platform=a/b/c/d", "cannot parse platform"),
        ] {
            let failure = parse(query).unwrap_err();
            assert_eq!(failure.status, 400, "{query}");
            assert!(failure.message.contains(part), "{query}: {}", failure.message);
        }
        let failure = parse("t=UPPER").unwrap_err();
        assert_eq!(failure.status, 500);
        assert!(failure.message.ends_with("must be lowercase"), "{}", failure.message);
    }

    #[test]
    fn credentials_belong_to_a_registry() {
        let json = br#"{"https://index.docker.io/v1/":{"username":"hub"},"h:5":{"username":"h"}}"#;
        let header = HeaderValue::from_str(&BASE64_URL_SAFE.encode(json)).unwrap();
        let headers =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-registry-config"), header)]);
        let options = Options::parse(&Query::parse(""), &headers).unwrap();
        for (name, user) in [("docker.io/library/a:1", "hub"), ("h:5/a:1", "h"), ("x/a:1", "")] {
            assert_eq!(options.auth(name).username, user);
        }
    }
}
