//! `longshore watch RUN`: follows a fleet's run to its end.

use crate::cli::{Output, WatchArgs};
use crate::failure::Failure;
use crate::follow::{Whose, follow};
use crate::runs::{self, Runs};
use crate::signals::Interrupts;

pub(crate) async fn run(args: &WatchArgs, output: Output) -> Result<u8, Failure> {
    let client = runs::fleet(&args.remote)?;
    let run = Runs::Fleet(client.clone()).find(&args.run).await?;
    follow(&client, run, output, Whose::Fleets, &mut Interrupts::catch()?).await
}
