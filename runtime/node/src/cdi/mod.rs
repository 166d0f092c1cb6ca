//! Devices by name (Container Device Interface): files of the machine say what a container needs
//! to use a device that it asks for as `vendor/class=name`.

mod spec;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
};

use berth_base::error::{Error, Result};

pub(crate) use self::spec::{DeviceNode, Edits, Mount};

use self::spec::{Device, Spec, check_name};

/// The prefix of annotations that name devices, with commas between them. Device plugins use them
/// where the kubelet does not pass on the names themselves (SPEC.md, "Kubernetes").
const ANNOTATIONS: &str = "cdi.k8s.io/";
/// How many devices, and how many broken files, an error names.
const MAX_NAMED: usize = 8;
const MAX_BROKEN: usize = 3;

/// The devices of a request, each of them once: those of its field, then those of its annotations.
///
/// # Errors
/// `InvalidArgument` for an annotation that does not consist of qualified names.
pub(crate) fn names(
    devices: &[String],
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for name in devices {
        add_once(&mut names, name);
    }
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATIONS)) {
        // Checked here, where the error can name the annotation. Those of the field are checked
        // when they are resolved.
        for name in value.split(',') {
            check_name(name).map_err(|error| error.during(format!("annotation {key}")))?;
            add_once(&mut names, name);
        }
    }
    Ok(names)
}

fn add_once(names: &mut Vec<String>, name: &str) {
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

/// What the devices with these qualified names need. The files are read anew each time: only
/// containers that name devices pay for it, and a driver that was just installed is found.
///
/// # Errors
/// `InvalidArgument` for a name that is in no valid file, or in two of one directory, and for edits
/// that berth cannot make.
pub(crate) fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits> {
    if names.is_empty() {
        return Ok(Edits::default());
    }
    Registry::read(directories).edits(names)
}

/// Whether a valid file describes devices of this kind, as in `nvidia.com/gpu`.
pub(crate) fn has_kind(directories: &[PathBuf], kind: &str) -> bool {
    Registry::read(directories).specs.iter().any(|spec| spec.kind == kind)
}

/// What all files say.
#[derive(Debug, Default)]
struct Registry {
    specs: Vec<Spec>,
    /// By qualified name.
    devices: BTreeMap<String, Place>,
    /// Files that cannot be used, and why.
    broken: Vec<String>,
}

/// Where a device is described.
#[derive(Clone, Debug)]
struct Place {
    /// Indexes of the directory, of the file in `specs`, and of the device in the file.
    directory: usize,
    spec: usize,
    device: usize,
    /// Another file of the same directory describes it too.
    is_ambiguous: bool,
}

impl Registry {
    /// Reads all files; those of later directories take precedence.
    fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (index, directory) in directories.iter().enumerate() {
            let files = match spec::files(directory) {
                Ok(files) => files,
                Err(error) => {
                    registry.broken.push(format!("{}: {error}", directory.display()));
                    continue;
                }
            };
            for path in files {
                match spec::read(&path) {
                    Ok(spec) => registry.add(index, spec),
                    // The devices of other files can be used all the same.
                    Err(error) => registry.broken.push(format!("{}: {error}", path.display())),
                }
            }
        }
        registry
    }

    fn add(&mut self, directory: usize, spec: Spec) {
        // Directories are read in their order, so what is there already is from an earlier one, or
        // from this one.
        for (device, Device { name, .. }) in spec.devices.iter().enumerate() {
            let place = Place { directory, spec: self.specs.len(), device, is_ambiguous: false };
            match self.devices.entry(format!("{}={name}", spec.kind)) {
                Entry::Occupied(earlier) if earlier.get().directory == directory => {
                    earlier.into_mut().is_ambiguous = true
                }
                Entry::Occupied(mut earlier) => drop(earlier.insert(place)),
                Entry::Vacant(free) => drop(free.insert(place)),
            }
        }
        self.specs.push(spec);
    }

    /// The edits of these devices, in this order. Those that a file has for all of its devices come
    /// once, before those of the first.
    fn edits(&self, names: &[String]) -> Result<Edits> {
        let mut edits = Edits::default();
        let mut begun = Vec::new();
        for name in names {
            check_name(name)?;
            // Known names are only those of valid files, so a broken file shows up here.
            let place = self.devices.get(name).ok_or_else(|| self.unknown(name))?;
            // Which of the two was meant cannot be known (SPEC.md, "Spec Directories").
            if place.is_ambiguous {
                let text = format!("CDI device {name:?} is in two files of one directory");
                return Err(Error::invalid(text));
            }
            // What the file says for all of its devices is for the container, not for the device.
            let spec = &self.specs[place.spec];
            if !begun.contains(&place.spec) {
                begun.push(place.spec);
                edits.add(name, &spec.container_edits)?;
            }
            edits.add(name, &spec.devices[place.device].container_edits)?;
        }
        Ok(edits)
    }

    /// The error for a device that is in no file: the reason may be a file that cannot be read.
    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> = self.devices.keys().map(String::as_str).take(MAX_NAMED).collect();
        let known = if known.is_empty() {
            "there are none".to_owned()
        } else {
            format!("there is {}", known.join(", "))
        };
        let mut text = format!("no CDI device {name:?}; {known}");
        for file in self.broken.iter().take(MAX_BROKEN) {
            text.push_str("; ignored ");
            text.push_str(file);
        }
        Error::invalid(text)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

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
        let directories: Vec<PathBuf> =
            directories.iter().map(|directory| directory.path().to_owned()).collect();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve(&directories, &names).map(|edits| edits.env)
    }

    #[test]
    fn what_a_file_says_for_all_comes_once_and_first() {
        let files = directory(&[("a.yaml", VENDOR)]);
        assert_eq!(
            env(&[&files], &["vendor.com/gpu=1", "vendor.com/gpu=0"]).unwrap(),
            ["ALL=1", "ONE=1", "ONE=0"]
        );
        let edits = resolve(&[files.path().to_owned()], &["vendor.com/gpu=0".to_owned()]).unwrap();
        assert_eq!(edits.device_nodes[0].host_path.as_deref(), Some(Path::new("/dev/null")));
        assert_eq!(
            (edits.device_nodes[0].file_mode, edits.additional_gids.as_slice()),
            (Some(0o660), &[44][..])
        );
        assert_eq!(edits.mounts[0].options, ["ro", "nosuid"]);
        let hooks = edits.hooks().unwrap();
        assert_eq!(
            (hooks.create_container[0].args[1].as_str(), hooks.create_container[0].timeout),
            ("now", Some(3))
        );
    }

    #[test]
    fn annotations_add_names_and_repeat_none() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
        };
        let given = ["v/c=a".to_owned(), "v/c=a".to_owned()];
        let two = annotations(&[
            ("cdi.k8s.io/1", "v/c=b,v/c=a"),
            ("cdi.k8s.io/2", "v/c=b"),
            ("cdi.k8s.io", "x"),
        ]);
        assert_eq!(names(&given, &two).unwrap(), ["v/c=a", "v/c=b"]);
        assert!(names(&[], &annotations(&[])).unwrap().is_empty());
        for wrong in ["", "v/c", "v/c=a,", "v/c=a, v/c=b"] {
            let refused = names(&[], &annotations(&[("cdi.k8s.io/x", wrong)])).unwrap_err();
            assert!(refused.message.contains("cdi.k8s.io/x"), "{refused}");
        }
    }

    #[test]
    fn later_directories_win_and_two_files_of_one_are_a_conflict() {
        let json = |value: &str| {
            let edits = format!(r#"{{"env":["{value}"]}}"#);
            let devices = format!(r#"[{{"name":"d","containerEdits":{edits}}}]"#);
            format!(r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":{devices}}}"#)
        };
        let first = directory(&[("a.json", &json("A=1"))]);
        let second = directory(&[("a.json", &json("A=2"))]);
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
                concat!(
                    r#"{"cdiVersion":"1.0.0","kind":"v/rdt","devices":[{"name":"d","#,
                    r#""containerEdits":{"intelRdt":{"closID":"x"}}}]}"#,
                ),
            ),
        ]);
        let message = env(&[&files], &["vendor.com/gpu=7"]).unwrap_err().message;
        for part in
            ["vendor.com/gpu=0", "broken.yaml", "key.json", "containerEdit", "new.json: cdiVersion"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert!(env(&[&files], &["v/rdt=d"]).unwrap_err().message.contains("intelRdt"));
        for name in ["gpu", "v/c", "/c=d", "v/=d", "v/c=", "v/c=d/e", "v/c=d ", "1/c=d", "v/c=../x"]
        {
            assert!(
                env(&[&files], &[name]).unwrap_err().message.contains("vendor/class=name"),
                "{name}"
            );
        }
        let large = directory(&[("large.json", &" ".repeat((4 << 20) + 1))]);
        assert!(env(&[&large], &["v/c=d"]).unwrap_err().message.contains("larger than 4 MiB"));
        let pipe = directory(&[]);
        nix::unistd::mkfifo(&pipe.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(env(&[&pipe], &["v/c=d"]).unwrap_err().message.contains("pipe.json"));
    }
}
