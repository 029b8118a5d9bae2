//! `tapster check`: what would run.

use std::io::Write;
use std::io::stdout;
use std::process::ExitCode;

use tapster::config::Faults;
use tapster::config::admin_to_toml;
use tapster::config::to_toml;
use tapster::config::units::format_size;
use tapster::input::InputConfig;
use tapster::observability::printable;
use tapster::output::OutputConfig;
use tapster::relay::Inherited;
use tapster::spool::Folder;
use tapster::spool::SpoolError;
use tapster::spool::SpoolSettings;
use tapster::spool::inspect;
use tapster::transport::Address;

use crate::cli::CheckArgs;
use crate::commands::CommandError;
use crate::commands::check_connect::check_peers;
use crate::commands::resolve_args;
use crate::commands::tell::tell;

/// Prints the configuration with every key filled in, and warnings beside it on stderr. Fails, with exit status 1, where
/// a spool could not be used now, or a reader or producer that was to be looked for is not there. The relay that uses it may be running: that is a remark.
pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode, CommandError> {
    let inherited = Inherited::take().map_err(|error| CommandError::Usage(error.to_string()))?;
    let passed = inherited.sockets();
    let is_passed = !passed.is_empty();
    let resolved = resolve_args(&args.relay, is_passed.then_some(passed))?;
    if !is_passed {
        note_passed(&resolved.config.inputs);
    }
    for warning in &resolved.warnings {
        tell(&format_args!("warning: {warning}"));
    }
    if !resolved.expired.is_empty() {
        return Err(Faults(resolved.expired).into());
    }
    let document = admin_to_toml(&resolved.admin) + &to_toml(&resolved.config);
    stdout()
        .write_all(document.as_bytes())
        .map_err(|error| CommandError::Failed(format!("stdout: {error}")))?;
    let outputs = &resolved.config.outputs;
    let mut faults: Vec<String> = outputs.iter().filter_map(spool_fault).collect();
    faults.extend(shared_folders(outputs));
    if args.connect {
        faults.extend(check_peers(&resolved.config.inputs, outputs)?);
    }
    if faults.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(CommandError::Failed(faults.join("\n"))) }
}

/// The service manager passes sockets to the relay alone, so that nobody knows here whether it will.
fn note_passed(inputs: &[InputConfig]) {
    for input in inputs {
        for address in input.listen.iter().filter(|address| matches!(address, Address::Systemd(_))) {
            // A name of the service manager has no control characters.
            let input = printable(&input.name);
            eprintln!(
                "tapster: note: input `{input}`: {address} is a socket that the service manager passes when it starts tapster; \
                 whether it does cannot be seen here"
            );
        }
    }
}

/// Says what an operator should know of the spool of an output. Returns what keeps the spool from being used.
fn spool_fault(output: &OutputConfig) -> Option<String> {
    let SpoolSettings { folder, config } = output.buffer.spool()?;
    let fault = match Folder::probe(folder) {
        // Most likely by the relay that runs with this configuration.
        Err(SpoolError::InUse { folder }) => {
            let (output, folder) = (&output.name, folder.display());
            eprintln!(
                "tapster: note: output `{output}`: a process uses the spool {folder} now; it must end before another can start"
            );
            return None;
        }
        Err(error) => error.to_string(),
        Ok(probed) if probed.free < config.min_free => format!(
            "the file system of {} has {} left, and `min_free` leaves all of {} to others: make room, or lower it",
            printable(folder),
            format_size(probed.free),
            format_size(config.min_free)
        ),
        Ok(probed) => {
            for remark in probed.remarks {
                eprintln!(
                    "tapster: warning: output `{}`: {}",
                    printable(&output.name),
                    printable(&remark.to_string())
                );
            }
            // A folder that is not there yet holds nothing.
            let found = Folder::open_to_inspect(folder).and_then(|folder| inspect(&folder)).ok()?;
            found.refusal(output.stream_type().as_ref())?.to_string()
        }
    };
    Some(format!("output `{}`: spool: {fault}", printable(&output.name)))
}

/// Outputs whose spools would be in one folder, whatever path leads there.
fn shared_folders(outputs: &[OutputConfig]) -> Vec<String> {
    let spools =
        outputs.iter().filter_map(|output| Some((output, Folder::place_of(&output.buffer.spool()?.folder)?)));
    let spools: Vec<_> = spools.collect();
    let others = |index: usize| spools.get(..index).unwrap_or_default();
    let shared = spools.iter().enumerate().filter_map(|(index, (output, place))| {
        let (other, _) = others(index).iter().find(|(_, seen)| seen == place)?;
        let folder = printable(&output.buffer.spool()?.folder);
        Some(format!(
            "output `{}`: spool: {folder} is the folder of output `{}` too: give each a folder of its own",
            printable(&output.name),
            printable(&other.name)
        ))
    });
    shared.collect()
}
