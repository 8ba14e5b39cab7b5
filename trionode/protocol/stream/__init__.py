"""The stream protocol, sans-IO: its messages, and the state machines of producer and consumer (spec §11).

Both machines recover in one way only: if anything is unanswered, they begin again at create. `next_deadline()` says
when to call `tick`. Creates go to the stream service, Gets and Saves to the index service, pushes and pulls to
`worker`.
"""
