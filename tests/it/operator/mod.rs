//! What an operator has besides the service: manual pages, completions, the doctor, traces, guides.

mod doctor;
mod manual;
mod package;
mod traces;
