//! `longshore schema`: the JSON Schema of pipeline files, made from the types that read them.

use longshore_coordinator::pipeline;

use crate::failure::Failure;
use crate::render::screen;

pub(crate) fn run() -> Result<u8, Failure> {
    screen::print(format!("{:#}\n", pipeline::json_schema()).as_bytes())?;
    Ok(0)
}
