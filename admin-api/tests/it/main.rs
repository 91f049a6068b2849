//! The control plane from outside: a fake data plane, a real listener, a real state file.

//mod access;
//mod bodies;
//mod control;
//mod crash;
//mod documents;
//mod events;
//mod guard;
//mod http;
mod store;
mod support;
