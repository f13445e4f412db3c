"""How an export becomes something that mount(2) can mount: one module for each kind of device."""
