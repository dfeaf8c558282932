//! What people and programs see.
//!
//! [`progress`] tells a run as it happens, as text; [`live`] adds a line per running step at a terminal's lower
//! edge; [`json`] tells the same as one object a line. [`table`] lays out columns, [`style`] has marks, colours
//! and durations, [`clean`] keeps a step's output from doing anything to a terminal, [`screen`] owns stdout.

pub(crate) mod clean;
pub(crate) mod json;
pub(crate) mod live;
pub(crate) mod progress;
pub(crate) mod screen;
pub(crate) mod style;
pub(crate) mod table;
