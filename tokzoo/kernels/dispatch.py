"""What a kernel says of a machine or a shape that it is not made for."""


class Unsupported(NotImplementedError):
  """This kernel cannot do it, another implementation can. One sentence with the reason."""
