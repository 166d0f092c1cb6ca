//! What an instruction makes of the config of its image.

use serde_json::json;

use crate::{
    build_args::BuildArgs,
    config::{Config, HealthConfig},
    error::{Error, Result},
    go,
    heredoc::needs_buildkit,
    instruction::{Argument, CommandLine, Instruction, Pair, Run},
    path, ports, signal,
    variables::Variables,
};

/// The most that the variables and labels of an image may have, in bytes. The kernel starts nothing
/// with more; without a limit, `ENV b=$a` over and over uses up the machine's memory.
const MAX_TEXT: usize = 2 << 20;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A stage, as far as its instructions have come.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// That of the last image; the next one gets it.
    pub config: Config,
    /// `MAINTAINER`.
    pub author: String,
    pub arguments: BuildArgs,
    /// An entry point drops the command of the image below, but not one of this stage.
    is_cmd_set: bool,
}

/// What the builder has to do for an instruction. A probe is the config by which the cache is asked,
/// see [`crate::is_same`]; it is kept as the new image's `container_config`, and its command is what
/// the history says.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Effect {
    /// Only the config has changed.
    Commit { probe: Config },
    /// The working directory has to be there.
    Workdir { probe: Config },
    /// A container with this config runs; if it ends with 0, what it has written is a layer.
    Run { probe: Config, executed: Config },
    /// Files come in. The probe needs their hash, see [`State::transfer_probe`].
    Transfer,
}

impl State {
    /// A stage upon an image with this config.
    pub fn begin(mut config: Config, arguments: BuildArgs) -> Self {
        config.open_stdin = false;
        config.stdin_once = false;
        let env = config.env.get_or_insert_default();
        if !env.iter().any(|entry| key(entry) == "PATH") {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        Self { config, arguments, ..Self::default() }
    }

    /// A config as it is.
    pub(crate) fn of(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    /// The instructions that the image below wants to be run first; each is a Dockerfile of its own,
    /// see [`crate::trigger`].
    pub fn take_triggers(&mut self) -> Vec<String> {
        self.config.on_build.take().unwrap_or_default()
    }

    /// The variables that the next instruction sees.
    pub fn variables(&self) -> Variables {
        let env = self.env();
        let arguments = self.arguments.beside(env);
        Variables::of(env.iter().chain(&arguments))
    }

    /// What dockerd prints on standard output before the instruction takes effect.
    pub fn note(&self, instruction: &Instruction) -> Option<String> {
        let before = self.config.healthcheck.as_ref()?.test.as_ref()?;
        let is_replaced = matches!(instruction, Instruction::Healthcheck(_))
            && before.first().is_some_and(|kind| kind != "NONE");
        let before = before.join(" ");
        is_replaced.then(|| format!("Note: overriding previous HEALTHCHECK: [{before}]\n"))
    }

    /// Applies an instruction whose variables are expanded.
    ///
    /// # Errors
    /// In dockerd's words: a port, a signal or a path that is none, a flag that only BuildKit knows.
    pub fn apply(&mut self, instruction: &Instruction) -> Result<Effect> {
        match instruction {
            Instruction::Add(add) => transfer(&add.chmod),
            Instruction::Copy(copy) => transfer(&copy.chmod),
            Instruction::Run(run) => self.run(run),
            Instruction::Workdir(path) => {
                self.config.working_dir = path::working_dir(&self.config.working_dir, path)?;
                let comment = format!("WORKDIR {}", self.config.working_dir);
                Ok(Effect::Workdir { probe: self.one_word_probe(&comment) })
            }
            other => {
                let comment = self.change(other)?;
                self.check_size()?;
                Ok(Effect::Commit { probe: self.probe(["#(nop) ", &comment]) })
            }
        }
    }

    /// Changes the config, and returns what the history says of that.
    fn change(&mut self, instruction: &Instruction) -> Result<String> {
        Ok(match instruction {
            Instruction::Arg(arguments) => self.declare(arguments),
            Instruction::Env(pairs) => {
                pairs.iter().for_each(|pair| self.set_env(pair));
                format!("ENV{}", joined(pairs))
            }
            Instruction::Label { pairs, .. } => {
                let labels = self.config.labels.get_or_insert_default();
                labels.extend(pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())));
                format!("LABEL{}", joined(pairs))
            }
            Instruction::Cmd(command) => self.set_cmd(command),
            Instruction::Entrypoint(command) => self.set_entrypoint(command),
            Instruction::Expose(specifications) => self.expose(specifications)?,
            Instruction::Healthcheck(health) => {
                // What is left open stays as it was.
                let before = self.config.healthcheck.take().unwrap_or_default();
                self.config.healthcheck = Some(health.clone().or(&before));
                format!("HEALTHCHECK {}", quoted(health))
            }
            Instruction::Maintainer(author) => {
                self.author.clone_from(author);
                format!("MAINTAINER {author}")
            }
            Instruction::OnBuild(trigger) => {
                self.config.on_build.get_or_insert_default().push(trigger.clone());
                format!("ONBUILD {trigger}")
            }
            Instruction::Shell(shell) => {
                self.config.shell = Some(shell.clone());
                format!("SHELL [{}]", shell.join(" "))
            }
            Instruction::StopSignal(signal) => {
                signal::check(signal)?;
                self.config.stop_signal = Some(signal.clone());
                format!("STOPSIGNAL {signal}")
            }
            Instruction::User(user) => {
                self.config.user.clone_from(user);
                format!("USER {user}")
            }
            Instruction::Volume(volumes) => {
                if volumes.iter().any(String::is_empty) {
                    return Err(Error::new("VOLUME specified can not be an empty string"));
                }
                let known = self.config.volumes.get_or_insert_default();
                known.extend(volumes.iter().map(|volume| (volume.clone(), json!({}))));
                format!("VOLUME [{}]", volumes.join(" "))
            }
            // `apply` has them: they are more than a change.
            Instruction::Add(_)
            | Instruction::Copy(_)
            | Instruction::Run(_)
            | Instruction::Workdir(_) => String::new(),
        })
    }

    /// The probe of `COPY` or `ADD`. `hash` is that of all its sources.
    pub fn transfer_probe(&self, name: &str, chown: &str, hash: &str, destination: &str) -> Config {
        let chown = match chown {
            "" => String::new(),
            chown => format!("--chown={chown} "),
        };
        self.one_word_probe(&format!("{name} {chown}{hash} in {destination} "))
    }

    fn check_size(&self) -> Result<()> {
        let Config { env, labels, .. } = &self.config;
        let env: usize = env.iter().flatten().map(String::len).sum();
        let labels: usize = labels.iter().flatten().map(|(k, v)| k.len() + v.len()).sum();
        match env + labels > MAX_TEXT {
            true => Err(Error(format!("the variables and labels have more than {MAX_TEXT} bytes"))),
            false => Ok(()),
        }
    }

    fn env(&self) -> &[String] {
        self.config.env.as_deref().unwrap_or_default()
    }

    fn set_env(&mut self, pair: &Pair) {
        let entry = format!("{}={}", pair.key, pair.value);
        let env = self.config.env.get_or_insert_default();
        match env.iter_mut().find(|known| key(known) == pair.key) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    }

    fn declare(&mut self, arguments: &[Argument]) -> String {
        let mut comment = String::from("ARG");
        for argument in arguments {
            self.arguments.add(&argument.key, argument.value.as_deref());
            comment.push_str(&format!(" {}", argument.key));
            if let Some(value) = &argument.value {
                comment.push_str(&format!("={value}"));
            }
        }
        comment
    }

    fn set_cmd(&mut self, command: &CommandLine) -> String {
        let words = self.words(command);
        let comment = format!("CMD {}", go::quote_list(&words));
        self.config.cmd = Some(words);
        self.config.args_escaped = None;
        self.is_cmd_set |= !command.is_empty();
        comment
    }

    /// `ENTRYPOINT` alone is none at all, unlike `CMD` alone, which is the shell.
    fn set_entrypoint(&mut self, command: &CommandLine) -> String {
        let words = (!command.is_empty()).then(|| self.words(command));
        let comment =
            format!("ENTRYPOINT {}", go::quote_list(words.as_deref().unwrap_or_default()));
        self.config.entrypoint = words;
        self.config.args_escaped = None;
        if !self.is_cmd_set {
            self.config.cmd = None;
        }
        comment
    }

    fn expose(&mut self, specifications: &[String]) -> Result<String> {
        let mut found = Vec::new();
        for specification in specifications {
            found.extend(ports::ports(specification)?);
        }
        let exposed = self.config.exposed_ports.get_or_insert_default();
        exposed.extend(found.into_iter().map(|port| (port, json!({}))));
        Ok(format!("EXPOSE {}", specifications.join(" ")))
    }

    fn run(&self, run: &Run) -> Result<Effect> {
        if let Some(flag) = run.flags.first() {
            return Err(needs_buildkit(&format!("the --{flag} option")));
        }
        let command = self.words(&run.with_heredocs()?);
        let arguments = self.arguments.beside(self.env());
        let mut recorded = command.clone();
        if !arguments.is_empty() {
            // No command begins with a bar, so that a command is never taken for an argument.
            let own = self.arguments.recorded(&arguments);
            let mark = format!("|{}", own.len());
            recorded = std::iter::once(mark.as_str())
                .chain(own)
                .map(str::to_owned)
                .chain(command.iter().cloned())
                .collect();
        }
        let is_empty = recorded.is_empty();
        let mut probe = Config { cmd: Some(recorded), args_escaped: None, ..self.config.clone() };
        let env = self.env().iter().cloned().chain(arguments).collect();
        let mut executed = Config {
            cmd: Some(command),
            env: Some(env),
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            ..probe.clone()
        };
        if !is_empty {
            probe.entrypoint = None;
            // As `docker run --entrypoint ""`.
            executed.entrypoint = Some(vec![String::new()]);
        }
        Ok(Effect::Run { probe, executed })
    }

    /// The words of a command; text gets the shell in front.
    fn words(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(words) => words.clone(),
            CommandLine::Shell(text) => {
                self.shell().into_iter().chain(text.iter().cloned()).collect()
            }
        }
    }

    fn shell(&self) -> Vec<String> {
        match &self.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        }
    }

    /// The config with a comment in the place of the command.
    fn probe<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Config {
        let words = words.into_iter().map(str::to_owned);
        Config { cmd: Some(self.shell().into_iter().chain(words).collect()), ..self.config.clone() }
    }

    /// `WORKDIR`, `COPY` and `ADD` have one space less in their history than the others.
    fn one_word_probe(&self, comment: &str) -> Config {
        self.probe([format!("#(nop) {comment}").as_str()])
    }
}

/// What the history says of an image with this probe.
pub fn created_by(probe: &Config) -> String {
    probe.cmd.as_deref().unwrap_or_default().join(" ")
}

fn transfer(chmod: &str) -> Result<Effect> {
    match chmod {
        "" => Ok(Effect::Transfer),
        _ => Err(needs_buildkit("the --chmod option")),
    }
}

fn key(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(key, _)| key)
}

fn joined(pairs: &[Pair]) -> String {
    pairs.iter().map(|pair| format!(" {}={}", pair.key, pair.value)).collect()
}

/// `%q` of Go's struct.
fn quoted(health: &HealthConfig) -> String {
    let test = go::quote_list(health.test.as_deref().unwrap_or_default());
    let durations = [health.interval, health.timeout, health.start_period, health.start_interval]
        .map(|nanos| go::quote(&go::duration(nanos)));
    format!("&{{{test} {} {}}}", durations.join(" "), go::quote_number(health.retries))
}

impl CommandLine {
    fn is_empty(&self) -> bool {
        match self {
            Self::Exec(words) => words.is_empty(),
            Self::Shell(text) => text.is_none(),
        }
    }
}
