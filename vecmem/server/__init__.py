"""The gRPC edge: servicers, interceptors, error table, application."""
