//! What a user of the library relies on, checked from outside.

mod golden; // the fixtures of ../shared, written by the original library
mod support;
mod writing; // fixtures and comparisons
