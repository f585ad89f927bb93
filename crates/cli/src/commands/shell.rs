//! `vgen completions` and `vgen man`, from the parser itself.

use std::io;

use clap::{Command, CommandFactory};
use vgen_core::Fault;

use crate::args::{CompletionsCommand, LocalArgs, ManCommand, Program, VgenArgs};
use crate::exit;
use crate::remote::flags::RemoteArgs;

fn command(program: Program) -> Command {
    match program {
        Program::Vgen => VgenArgs::command(),
        Program::VgenLocal => LocalArgs::command(),
        Program::VgenRemote => RemoteArgs::command(),
    }
}

/// Prints the completions of a program for a shell.
pub(crate) fn completions(args: &CompletionsCommand) -> Result<u8, Fault> {
    let mut command = command(args.program);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(exit::DONE)
}

/// Prints a program's page, or writes all pages.
pub(crate) fn man(args: &ManCommand) -> Result<u8, Fault> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command(args.program)).render(&mut page);
        rendered.map_err(|error| Fault::stop("output.write", format!("the page can't be made: {error}")))?;
        super::print(&String::from_utf8_lossy(&page))?;
        return Ok(exit::DONE);
    };
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // The page of `vgen local` is that of `vgen-local`, which comes later and says more.
        for program in [Program::Vgen, Program::VgenLocal, Program::VgenRemote] {
            clap_mangen::generate_to(command(program), folder)?;
        }
        Ok(())
    };
    write().map_err(|error| {
        Fault::stop("output.write", format!("{}: the pages can't be written: {error}", folder.display()))
    })?;
    Ok(exit::DONE)
}
