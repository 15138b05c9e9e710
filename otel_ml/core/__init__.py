"""The hot path: what runs in the user's thread; standard library and the OTel API's context only."""
