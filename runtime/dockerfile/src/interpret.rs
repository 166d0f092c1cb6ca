//! What an instruction says: its arguments and flags, checked as far as they can be without the
//! variables.

use std::collections::BTreeMap;

use crate::{
    config::HealthConfig,
    error::{Error, Result},
    flags::{Flags, Kind},
    go, heredoc,
    instruction::{
        Add, Argument, CommandLine, Copy, Heredoc, Instruction, Line, Pair, Run, Sources,
    },
    node::{Arguments, Node},
    suggest::suggest,
};

const NAMES: [&str; 18] = [
    "add",
    "arg",
    "cmd",
    "copy",
    "entrypoint",
    "env",
    "expose",
    "from",
    "healthcheck",
    "label",
    "maintainer",
    "onbuild",
    "run",
    "shell",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];
/// The shortest duration of a health check, in nanoseconds.
const SHORTEST: i64 = 1_000_000;

/// Interprets any instruction but `FROM`.
///
/// # Errors
/// In dockerd's words, without the number of the line.
pub(crate) fn instruction(node: Node) -> Result<Instruction> {
    let name = node.name.to_ascii_lowercase();
    let no_flags = || Flags::parse(&node.flags, &[]);
    Ok(match name.as_str() {
        "add" => Instruction::Add(add(node)?),
        "arg" => Instruction::Arg(arguments(&node)?),
        "copy" => Instruction::Copy(copy(node)?),
        "healthcheck" => Instruction::Healthcheck(health(node)?),
        "run" => Instruction::Run(run(node)?),
        "onbuild" => Instruction::OnBuild(on_build(&node)?),
        "cmd" => {
            no_flags()?;
            Instruction::Cmd(command(node.arguments))
        }
        "entrypoint" => {
            no_flags()?;
            Instruction::Entrypoint(command(node.arguments))
        }
        "env" => {
            no_flags()?;
            Instruction::Env(pairs(node.arguments, "ENV")?)
        }
        "label" => {
            no_flags()?;
            Instruction::Label { pairs: pairs(node.arguments, "LABEL")?, is_expanded: true }
        }
        "shell" => {
            no_flags()?;
            Instruction::Shell(shell(node.arguments)?)
        }
        "stopsignal" => Instruction::StopSignal(only(node.arguments, "STOPSIGNAL")?),
        "expose" => {
            let mut ports = at_least_one(node.arguments.clone(), "EXPOSE")?;
            no_flags()?;
            ports.sort();
            Instruction::Expose(ports)
        }
        "volume" => {
            let volumes = at_least_one(node.arguments.clone(), "VOLUME")?;
            no_flags()?;
            Instruction::Volume(volumes.iter().map(|v| volume(v)).collect::<Result<_>>()?)
        }
        "maintainer" | "user" | "workdir" => {
            let argument = only(node.arguments.clone(), &name.to_ascii_uppercase())?;
            no_flags()?;
            match name.as_str() {
                "maintainer" => Instruction::Maintainer(argument),
                "user" => Instruction::User(argument),
                _ => Instruction::Workdir(argument),
            }
        }
        _ => return Err(unknown(&node.name)),
    })
}

/// A line without the spaces around it, as dockerd prints it.
pub(crate) fn trimmed(line: Line) -> Line {
    Line { text: line.text.trim().to_owned(), ..line }
}

/// The suggestion is in the case in which the name is written.
fn unknown(name: &str) -> Error {
    let message = format!("unknown instruction: {name}");
    let lower = name.to_lowercase();
    if name != name.to_uppercase() || name == lower {
        return Error(suggest(message, &lower, &NAMES));
    }
    let upper = NAMES.map(str::to_ascii_uppercase);
    Error(suggest(message, name, &upper.each_ref().map(String::as_str)))
}

fn flat(arguments: Arguments) -> Vec<String> {
    match arguments {
        Arguments::Words(words) | Arguments::Json(words) => words,
        Arguments::Pairs(_) | Arguments::Instruction(_) => Vec::new(),
    }
}

fn at_least_one(arguments: Arguments, name: &str) -> Result<Vec<String>> {
    let words = flat(arguments);
    match words.is_empty() {
        true => Err(Error(format!("{name} requires at least one argument"))),
        false => Ok(words),
    }
}

fn only(arguments: Arguments, name: &str) -> Result<String> {
    match <[String; 1]>::try_from(flat(arguments)) {
        Ok([argument]) => Ok(argument),
        Err(_) => Err(Error(format!("{name} requires exactly one argument"))),
    }
}

fn command(arguments: Arguments) -> CommandLine {
    match arguments {
        Arguments::Json(words) => CommandLine::Exec(words),
        other => CommandLine::Shell(flat(other).into_iter().next()),
    }
}

fn pairs(arguments: Arguments, name: &str) -> Result<Vec<Pair>> {
    let Arguments::Pairs(pairs) = arguments else {
        return Err(Error(format!("{name} requires at least one argument")));
    };
    if pairs.iter().any(|(key, _)| key.is_empty()) {
        return Err(Error(format!("{name} names can not be blank")));
    }
    Ok(pairs.into_iter().map(|(key, value)| Pair { key, value }).collect())
}

fn arguments(node: &Node) -> Result<Vec<Argument>> {
    let words = at_least_one(node.arguments.clone(), "ARG")?;
    let argument = |word: String| match word.split_once('=') {
        Some(("", _)) => Err(Error::new("ARG names can not be blank")),
        Some((key, value)) => Ok(Argument { key: key.to_owned(), value: Some(value.to_owned()) }),
        None => Ok(Argument { key: word, value: None }),
    };
    words.into_iter().map(argument).collect()
}

fn shell(arguments: Arguments) -> Result<Vec<String>> {
    match arguments {
        Arguments::Json(words) if !words.is_empty() => Ok(words),
        Arguments::Words(words) if !words.is_empty() => {
            Err(Error::new("SHELL requires the arguments to be in JSON form"))
        }
        _ => Err(Error::new("SHELL requires at least one argument")),
    }
}

fn volume(path: &str) -> Result<String> {
    match path.trim() {
        "" => Err(Error::new("VOLUME specified can not be an empty string")),
        path => Ok(path.to_owned()),
    }
}

fn on_build(node: &Node) -> Result<String> {
    let Arguments::Instruction(trigger) = &node.arguments else {
        return Err(Error::new("ONBUILD requires at least one argument"));
    };
    Flags::parse(&node.flags, &[])?;
    match trigger.name.to_ascii_uppercase().as_str() {
        "ONBUILD" => {
            return Err(Error::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"));
        }
        name @ ("MAINTAINER" | "FROM") => {
            return Err(Error(format!("{name} isn't allowed as an ONBUILD trigger")));
        }
        _ => {}
    }
    // The text as it stands, behind the word ONBUILD.
    let text = node.line.text.trim_start();
    let mut trigger = text.get("ONBUILD".len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &node.heredocs {
        trigger.push('\n');
        trigger.push_str(&heredoc.content);
        trigger.push_str(&heredoc.name);
    }
    Ok(trigger)
}

fn run(node: Node) -> Result<Run> {
    let flags = Flags::parse(&node.flags, &[("mount", Kind::Texts), ("network", Kind::Text)])?;
    let network = flags.text("network").unwrap_or("default");
    if !matches!(network, "default" | "none" | "host") {
        return Err(Error(format!("invalid network mode {}", go::quote(network))));
    }
    Ok(Run { command: command(node.arguments), heredocs: node.heredocs, flags: flags.names() })
}

fn sources(node: Node, name: &str) -> Result<Sources> {
    let mut words = flat(node.arguments);
    let destination = words.pop().unwrap_or_default();
    let announced = |word: &str| heredoc::of_word(word).ok().flatten();
    if announced(&destination).is_some() {
        return Err(Error(format!("{name} cannot accept a heredoc as a destination")));
    }
    let contents: BTreeMap<String, Heredoc> =
        node.heredocs.into_iter().map(|heredoc| (heredoc.name.clone(), heredoc)).collect();
    let mut sources = Sources { destination, ..Sources::default() };
    for word in words {
        match announced(&word) {
            Some(heredoc) => {
                check_file_name(&heredoc.name)?;
                let content =
                    contents.get(&heredoc.name).map(|h| h.content.clone()).unwrap_or_default();
                sources.contents.push(Heredoc { content, ..heredoc });
            }
            None => sources.paths.push(word),
        }
    }
    Ok(sources)
}

/// A heredoc that is copied becomes a file of this name: one that stays where it is made.
fn check_file_name(name: &str) -> Result<()> {
    match matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        true => Err(Error(format!("{} is no name of a file", go::quote(name)))),
        false => Ok(()),
    }
}

/// Fewer than a source and a destination.
fn lacks_destination(node: &Node) -> bool {
    match &node.arguments {
        Arguments::Words(words) | Arguments::Json(words) => words.len() < 2,
        Arguments::Pairs(_) | Arguments::Instruction(_) => true,
    }
}

fn no_destination(name: &str) -> Error {
    Error(format!(
        "{name} requires at least two arguments, but only one was provided. Destination could not be \
         determined"
    ))
}

fn add(node: Node) -> Result<Add> {
    if lacks_destination(&node) {
        return Err(no_destination("ADD"));
    }
    let flags = Flags::parse(
        &node.flags,
        &[
            ("chown", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Switch),
            ("keep-git-dir", Kind::Switch),
            ("checksum", Kind::Text),
            ("unpack", Kind::Switch),
            ("exclude", Kind::Texts),
        ],
    )?;
    Ok(Add {
        sources: sources(node, "ADD")?,
        chown: flags.text_or_empty("chown"),
        chmod: flags.text_or_empty("chmod"),
        checksum: flags.text_or_empty("checksum"),
        is_link: flags.switch("link").unwrap_or_default(),
        excludes: flags.texts("exclude"),
        keep_git_dir: flags.switch("keep-git-dir"),
        unpack: flags.switch("unpack"),
    })
}

fn copy(node: Node) -> Result<Copy> {
    if lacks_destination(&node) {
        return Err(no_destination("COPY"));
    }
    let flags = Flags::parse(
        &node.flags,
        &[
            ("chown", Kind::Text),
            ("from", Kind::Text),
            ("chmod", Kind::Text),
            ("link", Kind::Switch),
            ("exclude", Kind::Texts),
        ],
    )?;
    Ok(Copy {
        sources: sources(node, "COPY")?,
        from: flags.text_or_empty("from"),
        chown: flags.text_or_empty("chown"),
        chmod: flags.text_or_empty("chmod"),
        is_link: flags.switch("link").unwrap_or_default(),
        excludes: flags.texts("exclude"),
    })
}

fn health(node: Node) -> Result<HealthConfig> {
    let is_json = matches!(node.arguments, Arguments::Json(_));
    let mut words = at_least_one(node.arguments, "HEALTHCHECK")?;
    let kind = words.remove(0).to_uppercase();
    if kind == "NONE" {
        return match words.is_empty() {
            true => Ok(HealthConfig { test: Some(vec![kind]), ..HealthConfig::default() }),
            false => Err(Error::new("HEALTHCHECK NONE takes no arguments")),
        };
    }
    let flags = Flags::parse(
        &node.flags,
        &["interval", "timeout", "start-period", "start-interval", "retries"]
            .map(|name| (name, Kind::Text)),
    )?;
    if kind != "CMD" {
        let kind = go::quote(&kind);
        return Err(Error(format!("Unknown type {kind} in HEALTHCHECK (try CMD)")));
    }
    if words.is_empty() {
        return Err(Error::new("Missing command after HEALTHCHECK CMD"));
    }
    let kind = if is_json { "CMD" } else { "CMD-SHELL" };
    words.insert(0, kind.to_owned());
    Ok(HealthConfig {
        test: Some(words),
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries: retries(flags.text("retries").unwrap_or_default())?,
    })
}

fn interval(flags: &Flags, name: &str) -> Result<i64> {
    match flags.text(name).unwrap_or_default() {
        "" => Ok(0),
        text => match go::parse_duration(text)? {
            nanos if nanos != 0 && nanos < SHORTEST => {
                Err(Error(format!("Interval {} cannot be less than 1ms", go::quote(name))))
            }
            nanos => Ok(nanos),
        },
    }
}

fn retries(text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = match text.parse::<i32>() {
        Ok(retries) if retries < 0 => {
            return Err(Error(format!("--retries cannot be negative ({retries})")));
        }
        Ok(retries) => return Ok(retries.into()),
        Err(_) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            "value out of range"
        }
        Err(_) => "invalid syntax",
    };
    Err(Error(format!("strconv.ParseInt: parsing {}: {why}", go::quote(text))))
}
