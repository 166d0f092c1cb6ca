//! Devices by name (Container Device Interface 1.1): files of the machine say what a container needs to use one.
//! <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use berth_shim::spec::Hooks;
use serde::Deserialize;

use crate::error::{Error, Result};

/// A GPU's file has tens of kilobytes.
const MAX_FILE: u64 = 4 << 20;

/// What containers get with the devices that they name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    intel_rdt: Option<serde::de::IgnoredAny>,
    net_devices: Vec<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DeviceNode {
    /// In the container, and on the host unless `host_path` says otherwise.
    pub path: PathBuf,
    pub host_path: Option<PathBuf>,
    /// `b`, `c` or `u`; absent: what the host's node is, as with the two numbers.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    /// Of `r`, `w` and `m`; absent: all.
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Mount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    /// Words of mount(8).
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    /// Seconds.
    timeout: Option<u32>,
}

/// One file: a kind, which is `vendor/class`, and devices of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

/// What the devices with these qualified names (`vendor/class=name`) need. The files are read anew each time: only containers that name
/// devices pay for it, and a driver that was just installed is there.
///
/// # Errors
/// `InvalidArgument` for a name that no valid file knows, or two of the same directory do, and for edits that cannot be made.
pub(crate) fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits> {
    if names.is_empty() {
        return Ok(Edits::default());
    }
    Registry::read(directories).edits(names)
}

/// What the files say.
#[derive(Debug, Default)]
struct Registry {
    specs: Vec<Spec>,
    /// By qualified name: the indexes of its spec and of the device in it.
    devices: BTreeMap<String, Place>,
    /// Files that count for nothing, and why.
    broken: Vec<String>,
}

#[derive(Clone, Debug)]
struct Place {
    directory: usize,
    spec: usize,
    device: usize,
    conflict: bool,
}

impl Registry {
    /// Later directories take precedence.
    fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (index, directory) in directories.iter().enumerate() {
            let files = match files(directory) {
                Ok(files) => files,
                Err(error) => {
                    registry.broken.push(format!("{}: {error}", directory.display()));
                    continue;
                }
            };
            for path in files {
                match read(&path).and_then(|text| parse(&text)) {
                    Ok(spec) => registry.add(index, spec),
                    Err(error) => registry.broken.push(format!("{}: {error}", path.display())),
                }
            }
        }
        registry
    }

    fn add(&mut self, directory: usize, spec: Spec) {
        for (device, Device { name, .. }) in spec.devices.iter().enumerate() {
            let place = Place { directory, spec: self.specs.len(), device, conflict: false };
            match self.devices.entry(format!("{}={name}", spec.kind)) {
                Entry::Occupied(earlier) if earlier.get().directory == directory => earlier.into_mut().conflict = true,
                Entry::Occupied(mut earlier) => drop(earlier.insert(place)),
                Entry::Vacant(free) => drop(free.insert(place)),
            }
        }
        self.specs.push(spec);
    }

    /// Those of a file come once, before those of its first device.
    fn edits(&self, names: &[String]) -> Result<Edits> {
        let (mut edits, mut begun) = (Edits::default(), Vec::new());
        for name in names {
            check_name(name)?;
            let place = self.devices.get(name).ok_or_else(|| self.unknown(name))?;
            if place.conflict {
                return Err(Error::invalid(format!("CDI device {name:?} is in two files of one directory")));
            }
            let spec = &self.specs[place.spec];
            if !begun.contains(&place.spec) {
                begun.push(place.spec);
                edits.add(name, &spec.container_edits)?;
            }
            edits.add(name, &spec.devices[place.device].container_edits)?;
        }
        Ok(edits)
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> = self.devices.keys().map(String::as_str).take(8).collect();
        let known =
            if known.is_empty() { "there are none".to_owned() } else { format!("there is {}", known.join(", ")) };
        let broken: String = self.broken.iter().take(3).map(|file| format!("; ignored {file}")).collect();
        Error::invalid(format!("no CDI device {name:?}; {known}{broken}"))
    }
}

impl Edits {
    fn add(&mut self, name: &str, more: &Edits) -> Result<()> {
        let cannot =
            |what: &str| Err(Error::invalid(format!("CDI device {name:?} wants {what}, which berth cannot do")));
        if more.intel_rdt.is_some() {
            return cannot("intelRdt");
        }
        if !more.net_devices.is_empty() {
            return cannot("netDevices");
        }
        if let Some(wrong) = more.env.iter().find(|text| text.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
            return Err(Error::invalid(format!("CDI device {name:?}: {wrong:?} is not NAME=value")));
        }
        self.env.extend_from_slice(&more.env);
        self.device_nodes.extend_from_slice(&more.device_nodes);
        self.mounts.extend_from_slice(&more.mounts);
        self.hooks.extend_from_slice(&more.hooks);
        self.additional_gids.extend_from_slice(&more.additional_gids);
        Ok(())
    }

    /// By the moment at which they run.
    ///
    /// # Errors
    /// `InvalidArgument` for a moment that there is not, and for a program without an absolute path.
    pub(crate) fn hooks(&self) -> Result<Hooks> {
        let mut hooks = Hooks::default();
        for hook in &self.hooks {
            let list = match hook.hook_name.as_str() {
                "prestart" => &mut hooks.prestart,
                "createRuntime" => &mut hooks.create_runtime,
                "createContainer" => &mut hooks.create_container,
                "startContainer" => &mut hooks.start_container,
                "poststart" => &mut hooks.poststart,
                "poststop" => &mut hooks.poststop,
                name => return Err(Error::invalid(format!("CDI: there is no hook {name:?}"))),
            };
            if !hook.path.is_absolute() {
                return Err(Error::invalid(format!(
                    "CDI: the hook {:?} is not absolute",
                    hook.path.display().to_string()
                )));
            }
            let (path, args, env) = (hook.path.clone(), hook.args.clone(), hook.env.clone());
            list.push(berth_shim::spec::Hook { path, args, env, timeout: hook.timeout });
        }
        Ok(hooks)
    }
}

/// `*.json` and `*.yaml`, by name.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml"));
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> std::result::Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(length) if length as u64 > MAX_FILE => Err(format!("larger than {} MiB", MAX_FILE >> 20)),
        Ok(_) => Ok(text),
    }
}

/// JSON is YAML too.
fn parse(text: &str) -> std::result::Result<Spec, String> {
    let spec: Spec = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if !matches!(spec.cdi_version.split('.').collect::<Vec<_>>()[..], ["0" | "1", _, _]) {
        return Err(format!("cdiVersion {:?} is not known", spec.cdi_version));
    }
    for Device { name, .. } in &spec.devices {
        check_name(&format!("{}={name}", spec.kind)).map_err(|error| error.message)?;
    }
    Ok(spec)
}

/// `vendor/class=name`, each of letters, digits and what is between them.
fn check_name(name: &str) -> Result<()> {
    let part = |text: &str, between: &str, begins: fn(char) -> bool| {
        text.starts_with(begins)
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || between.contains(c))
    };
    let letter = |c: char| c.is_ascii_alphabetic();
    let valid = name.split_once('=').and_then(|(kind, device)| {
        let (vendor, class) = kind.split_once('/')?;
        Some(
            part(vendor, "_-.", letter)
                && part(class, "_-.", letter)
                && part(device, "_-.:", |c| c.is_ascii_alphanumeric()),
        )
    });
    match valid {
        Some(true) => Ok(()),
        _ => Err(Error::invalid(format!("CDI device {name:?} is not vendor/class=name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VENDOR: &str = "
cdiVersion: 0.6.0
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
devices:
- name: '0'
  containerEdits:
    env: [ONE=0]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 432}]
    mounts: [{hostPath: /lib/x, containerPath: /usr/lib/x, options: [ro, nosuid]}]
    hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, now], timeout: 3}]
    additionalGids: [44]
- name: '1'
  containerEdits: {env: [ONE=1]}
";

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn env(directories: &[&tempfile::TempDir], names: &[&str]) -> Result<Vec<String>> {
        let directories: Vec<PathBuf> = directories.iter().map(|directory| directory.path().to_owned()).collect();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve(&directories, &names).map(|edits| edits.env)
    }

    #[test]
    fn what_a_file_says_for_all_comes_once_and_first() {
        let files = directory(&[("a.yaml", VENDOR)]);
        assert_eq!(env(&[&files], &["vendor.com/gpu=1", "vendor.com/gpu=0"]).unwrap(), ["ALL=1", "ONE=1", "ONE=0"]);
        let edits = resolve(&[files.path().to_owned()], &["vendor.com/gpu=0".to_owned()]).unwrap();
        assert_eq!(edits.device_nodes[0].host_path.as_deref(), Some(Path::new("/dev/null")));
        assert_eq!((edits.device_nodes[0].file_mode, edits.additional_gids.as_slice()), (Some(0o660), &[44][..]));
        assert_eq!(edits.mounts[0].options, ["ro", "nosuid"]);
        let hooks = edits.hooks().unwrap();
        assert_eq!((hooks.create_container[0].args[1].as_str(), hooks.create_container[0].timeout), ("now", Some(3)));
    }

    #[test]
    fn later_directories_win_and_two_files_of_one_are_a_conflict() {
        let json = |value: &str| {
            format!(
                r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{{"env":["{value}"]}}}}]}}"#
            )
        };
        let (first, second) = (directory(&[("a.json", &json("A=1"))]), directory(&[("a.json", &json("A=2"))]));
        assert_eq!(env(&[&first, &second], &["v/c=d"]).unwrap(), ["A=2"]);
        let both = directory(&[("a.json", &json("A=1")), ("b.yaml", &json("A=2"))]);
        assert!(env(&[&both], &["v/c=d"]).unwrap_err().message.contains("two files"));
        assert_eq!(env(&[&both, &second], &["v/c=d"]).unwrap(), ["A=2"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let files = directory(&[
            ("broken.yaml", "kind: ["),
            ("good.yaml", VENDOR),
            ("key.json", r#"{"cdiVersion":"1.0.0","kind":"v/c","devices":[],"containerEdit":{}}"#),
            ("new.json", r#"{"cdiVersion":"2.0.0","kind":"v/c","devices":[]}"#),
            ("other.txt", "{"),
            (
                "rdt.json",
                r#"{"cdiVersion":"1.0.0","kind":"v/rdt","devices":[{"name":"d","containerEdits":{"intelRdt":{"closID":"x"}}}]}"#,
            ),
        ]);
        let message = env(&[&files], &["vendor.com/gpu=7"]).unwrap_err().message;
        for part in ["vendor.com/gpu=0", "broken.yaml", "key.json", "containerEdit", "new.json: cdiVersion"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(env(&[&files], &["v/rdt=d"]).unwrap_err().message.contains("intelRdt"));
        for name in ["gpu", "v/c", "/c=d", "v/=d", "v/c=", "v/c=d/e", "v/c=d ", "1/c=d", "v/c=../x"] {
            assert!(env(&[&files], &[name]).unwrap_err().message.contains("vendor/class=name"), "{name}");
        }
        let large = directory(&[("large.json", &" ".repeat(MAX_FILE as usize + 1))]);
        assert!(env(&[&large], &["v/c=d"]).unwrap_err().message.contains("larger than 4 MiB"));
    }
}
