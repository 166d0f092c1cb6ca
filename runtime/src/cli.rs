//! The command line: the commands besides the daemon itself.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, bail};
use berth_base::{
    config::{self, Config},
    layout::Layout,
};
use clap::{CommandFactory, FromArgMatches};

use crate::{
    arguments::{Arguments, ConfigVerb, DebugVerb, EngineVerb, ImagesVerb, Verb},
    build, client, daemon, debug, import_config, memory,
};

const CONFIG: &str = "/etc/berth/config.toml";

/// Runs the program, and prints the error that ends it.
pub(crate) fn run() -> ExitCode {
    let matches = Arguments::command().version(build::VERSION).get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let result = match &arguments.command {
        Some(Verb::Check { json }) => return check(&arguments, *json),
        Some(Verb::Config(ConfigVerb::Default)) => {
            #[allow(clippy::print_stdout, reason = "what was asked for")]
            {
                print!("{}", config::DEFAULT);
            }
            Ok(())
        }
        Some(Verb::Config(ConfigVerb::Check)) => configuration(&arguments).map(drop),
        Some(Verb::Images(verb)) => images(&arguments, verb),
        Some(Verb::Engine(verb)) => import_config(&arguments, verb),
        Some(Verb::Debug(DebugVerb::State)) => debug_state(&arguments),
        None => run_daemon(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("berthd: {error:#}");
    ExitCode::FAILURE
}

/// The exit code of `berthd check`, which has said all there is to say.
#[allow(clippy::print_stdout, reason = "what was asked for")]
fn check(arguments: &Arguments, json: bool) -> ExitCode {
    let looked = configuration(arguments).and_then(|config| {
        Ok(asynchronous()?.block_on(berth_check::check(&config, build::VERSION, build::time())))
    });
    match looked {
        Ok(report) => {
            print!("{}", if json { report.json() } else { report.table() });
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => failed(&error),
    }
}

/// For commands that wait for somebody else.
fn asynchronous() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("start the asynchronous runtime")
}

/// The configuration: the file's, with options of the command line in place of its keys.
fn configuration(arguments: &Arguments) -> anyhow::Result<Config> {
    let path = arguments.config.as_deref().unwrap_or(Path::new(CONFIG));
    // Only the default file may be absent. One that was named and does not exist is a mistake.
    let mut config = Config::load(path, arguments.config.is_some()).map_err(anyhow::Error::msg)?;
    if let Some(root) = &arguments.root {
        config.root.clone_from(root);
    }
    if let Some(state) = &arguments.state {
        config.state.clone_from(state);
    }
    if let Some(listen) = &arguments.listen {
        config.listen.clone_from(listen);
    }
    Ok(config)
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn import_config(arguments: &Arguments, verb: &EngineVerb) -> anyhow::Result<()> {
    let EngineVerb::ImportConfig { file, dry_run, force } = verb;
    let registries = configuration(arguments)?.registry.config_path;
    let request = import_config::Request {
        file,
        registries: &registries,
        is_dry: *dry_run,
        replaces: *force,
    };
    print!("{}", import_config::import(&request)?);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn debug_state(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configuration(arguments)?;
    print!("{}", debug::state(&Layout { root: config.root, state: config.state })?);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn images(arguments: &Arguments, verb: &ImagesVerb) -> anyhow::Result<()> {
    // The daemon has the images open, so these commands are requests to it. The configuration tells
    // where its socket is.
    let socket = configuration(arguments)?.listen;
    let runtime = asynchronous()?;
    match verb {
        ImagesVerb::Import { file, name } => {
            for image in runtime.block_on(client::import(&socket, file, name.as_deref()))? {
                println!("{}  {}", image.id, image.names.join(" "));
            }
            Ok(())
        }
        ImagesVerb::Export { names, output } => {
            runtime.block_on(client::export(&socket, output.as_deref(), names.clone()))
        }
        ImagesVerb::Check { repair } => {
            // Printed as they come: to read every file of all images may take minutes.
            let damaged = runtime.block_on(client::check(&socket, *repair, |image| {
                let state = image.state().as_str_name().to_lowercase();
                println!("{state:<8}  {}  {}", image.id, image.names.join(" "));
                image.problems.iter().for_each(|problem| println!("          {problem}"));
            }))?;
            match (damaged, repair) {
                (0, _) => Ok(()),
                (_, true) => bail!("{damaged} damaged images are left"),
                (_, false) => bail!(
                    "{damaged} damaged images; `berthd images check --repair` pulls them again"
                ),
            }
        }
    }
}

fn run_daemon(arguments: &Arguments) -> anyhow::Result<()> {
    // It may execute this program once more, so it comes before everything else.
    memory::give_back();
    let config = configuration(arguments)?;
    daemon::run(&config, &arguments.log_level, arguments.log_format)
}
