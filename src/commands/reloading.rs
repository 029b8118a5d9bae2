//! The configuration is read again, on a thread of its own: to look up a name to listen on takes as long as the name servers let
//! it, and signals have to be heard meanwhile.

use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::thread;

use tapster::admin::Opened;
use tapster::admin::Refusal;
use tapster::admin::Reloaded;
use tapster::admin::Server;
use tapster::config::AdminConfig;
use tapster::config::Resolved;
use tapster::config::admin_differences;
use tapster::config::differences;
use tapster::config::to_json;
use tapster::observability::printable;
use tapster::relay::ChangeError;
use tapster::relay::Plan;
use tapster::relay::Planner;
use tapster::relay::Relay;
use tapster::transport::Address;

use crate::cli::RelayArgs;
use crate::commands::resolve_args;

/// Another configuration, when nothing can fail any more.
#[derive(Debug)]
pub(crate) struct Prepared {
    plan: Plan,
    admin: AdminConfig,
    opened: Opened,
    /// The configuration, to be shown.
    pub(crate) shown: serde_json::Value,
    reloaded: Reloaded,
}

impl Prepared {
    /// Lets relay and server go on with it.
    ///
    /// # Errors
    /// The system has no thread, or a worker does not answer.
    pub(crate) fn carry_out(self, relay: &mut Relay, server: &mut Server) -> Result<Reloaded, Refusal> {
        relay.carry_out(self.plan).map_err(|error| Refusal::Failed(error.to_string()))?;
        let adopted = server.adopt(self.admin, self.opened);
        adopted.map_err(|error| Refusal::Failed(format!("the admin addresses cannot be used: {error}")))?;
        Ok(self.reloaded)
    }
}

/// Reads the configuration that these options name, and does whatever can fail. Delivers the outcome in any case.
///
/// # Errors
/// The system has no thread for it; nothing is delivered.
pub(crate) fn begin(
    args: &RelayArgs,
    relay: &Relay,
    server: &Server,
    deliver: impl FnOnce(Result<Prepared, Refusal>) + Send + 'static,
) -> io::Result<()> {
    let (args, planner) = (args.clone(), relay.planner());
    let (admin, present) = (server.config().clone(), server.present());
    let run = move || {
        let prepared = catch_unwind(AssertUnwindSafe(|| prepare(&args, planner, &admin, &present)));
        let failed =
            |_| Err(Refusal::Failed("a bug: reading the configuration ended with a panic".to_owned()));
        deliver(prepared.unwrap_or_else(failed));
    };
    thread::Builder::new().name("reload".to_owned()).spawn(run).map(drop)
}

fn prepare(
    args: &RelayArgs,
    planner: Planner,
    former_admin: &AdminConfig,
    present: &[Address],
) -> Result<Prepared, Refusal> {
    let Resolved { config, admin, expired, warnings, places } =
        // The relay has what the service manager passes, and looks for it there.
        resolve_args(args, None).map_err(|faults| Refusal::Faults(lines(&faults.0)))?;
    let mut changes = differences(planner.present(), &config);
    changes.extend(admin_differences(former_admin, &admin));
    let shown = to_json(&config, &admin);
    let plan = planner.plan(config).map_err(|faults| {
        let located = |fault: &ChangeError| {
            let place = fault.output().and_then(|output| places.output(output));
            let place = place.or_else(|| places.input(fault.input()?)).or_else(|| places.key(fault.key()?));
            at(place, &fault.to_string())
        };
        faults.iter().map(located).collect::<Vec<_>>()
    });
    let opened = Opened::open(&admin, present, Vec::new());
    let opened = opened
        .map_err(|faults| faults.iter().map(|fault| at(places.key("admin"), fault)).collect::<Vec<_>>());
    match (plan, opened) {
        (Ok(plan), Ok(opened)) => {
            if plan.has_read_certificates() {
                changes.push("certificates whose files have changed were read again".to_owned());
            }
            let changes = changes.iter().map(|line| printable(line).to_string()).collect();
            let reloaded = Reloaded { changes, warnings: [lines(&expired), lines(&warnings)].concat() };
            Ok(Prepared { plan, admin, opened, shown, reloaded })
        }
        (plan, opened) => {
            let faults = plan.err().into_iter().chain(opened.err()).flatten();
            Err(Refusal::Faults(faults.map(|line| printable(&line).to_string()).collect()))
        }
    }
}

/// A fault at the place that it comes from, where that is known.
fn at(place: Option<&str>, fault: &str) -> String {
    place.map_or_else(|| fault.to_owned(), |place| format!("{place}: {fault}"))
}

fn lines(faults: &[impl ToString]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}
