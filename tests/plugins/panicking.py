"""The import raises what is no Exception, as a panic in an extension module is."""


class Panic(BaseException):
    pass


raise Panic("out of cheese")
